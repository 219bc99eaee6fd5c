"""GPTNeo in Keras: the original's models/gpt2/gpt2.py. export/graph.py is the ONNX twin."""

from __future__ import annotations

import contextlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError
from neo_tf.layers import attn, embed, layer_norm, mlp, rezero, scale_norm, unembed
from neo_tf.moe import moe
from neo_tf.progress import Progress, no_progress
from neo_tf.scope import Scope
from neo_tf.training.loss import CrossEntropyWithZLoss
from neo_tf.variables import ROOT, Variable, layer_scope, model_variables, storage_name

if TYPE_CHECKING:
    from keras import KerasTensor

    from neo_tf.checkpoints import Checkpoint


def block(
    x: KerasTensor,
    scope: Scope,
    layer: int,
    config: GPTNeoConfig,
    training: bool = False,
    seed: keras.random.SeedGenerator | None = None,
) -> tuple[KerasTensor, KerasTensor | None]:
    """One layer of the original: x += attn(norm_1(x)); x += mlp(norm_2(x)).

    Attention type "none" adds x to itself. macaron's first mlp has neither a norm nor rezero.

    Args:
        x: [batch, seq, embd].
        scope: The layer's scope.
        layer: The layer's number.
        config: The model's config.
        training: Whether dropout is active, and a mixture of experts uses its settings for training.
        seed: The generator of random draws.

    Returns:
        ([batch, seq, embd], the auxiliary loss of a mixture of experts or None).
    """
    if config.macaron:
        x = x + mlp(x, scope["mlp_macaron"], config, training, seed) * 0.5

    def prenorm(x: KerasTensor, name: str) -> KerasTensor:
        if config.rezero:
            return x
        return (scale_norm if config.scalenorm else layer_norm)(x, scope[name], config)

    a = x
    if config.attention_types[layer] != "none":
        a = attn(prenorm(x, "norm_1"), scope["attn"], layer, config, training, seed)
    a = rezero(a, scope["norm_rezero_1"]) if config.rezero else a
    x = x + a

    h = prenorm(x, "norm_2")
    loss = None
    if layer in config.moe_layers:
        m, loss = moe(h, scope, config, training, seed)
    else:
        m = mlp(h, scope["mlp"], config, training, seed)
    m = m * 0.5 if config.macaron else m
    m = rezero(m, scope["norm_rezero_2"]) if config.rezero else m
    return x + m, loss


class _Scoped:
    """The part that GPTNeo and its blocks share: they create variables whose paths are the original's names.

    Attributes:
        variables_by_name: The variables, {name below the model's or block's own scope: variable}.
        scope: The same variables, nested.
    """

    variables_by_name: dict[str, keras.Variable]
    scope: Scope

    def _add_variables(self, specs: dict[str, Variable], dtype: str) -> None:
        weights = {name: _create(name, spec, dtype) for name, spec in specs.items()}
        scope = Scope()
        for name, weight in weights.items():
            scope.insert(name, weight)
        self.variables_by_name = weights  # an attribute that Keras tracks
        object.__setattr__(self, "scope", scope)  # the same variables: Keras need not track them twice


def _create(name: str, spec: Variable, dtype: str) -> keras.Variable:
    """Creates a variable whose path is its name below the current scope; add_weight would leave out inner scopes."""
    *inner, last = name.split("/")
    initializer = (
        keras.initializers.RandomNormal(spec.mean, spec.stddev)
        if spec.stddev
        else keras.initializers.Constant(spec.mean)
    )
    with contextlib.ExitStack() as stack:
        for part in inner:
            stack.enter_context(keras.name_scope(part))
        return keras.Variable(initializer, spec.shape, dtype=dtype, name=last)


@keras.saving.register_keras_serializable("neo_tf")
class Block(_Scoped, keras.layers.Layer):
    """A layer of the model, named h0, h1, ... as in the original.

    Args:
        config: The model's config.
        layer: The layer's number.
        variables: The variables below the layer's scope, {name: Variable}; empty where all layers share the model's.
        seed_generator: The generator of random draws.
        kwargs: Further arguments of keras.layers.Layer.
    """

    def __init__(
        self,
        config: GPTNeoConfig,
        layer: int,
        variables: dict[str, Variable],
        seed_generator: keras.random.SeedGenerator,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=f"h{layer}", **kwargs)
        self.config = config
        self.layer = layer
        self.seed_generator = seed_generator
        self._specs = dict(variables)

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables."""
        self._add_variables(self._specs, self.variable_dtype)
        self.built = True

    def call(self, x: KerasTensor, training: bool = False, scope: Scope | None = None) -> KerasTensor:
        """Applies the layer: [batch, seq, embd] -> [batch, seq, embd].

        Args:
            x: [batch, seq, embd].
            training: See block.
            scope: The variables where all layers share the model's; by default the block's own.
        """
        x, loss = block(x, scope or self.scope, self.layer, self.config, training, self.seed_generator)
        if loss is not None:
            self.add_loss(loss)  # in evaluation too, like the original
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the input's shape, which a block keeps."""
        return input_shape

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Does nothing: the model stores all variables under their canonical names."""

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Does nothing: see GPTNeo.load_own_variables."""


@keras.saving.register_keras_serializable("neo_tf")
class GPTNeo(_Scoped, keras.Model):
    """GPT-Neo, with the original's names as variable paths.

    Args:
        config: The model's config.
        dtype: A Keras dtype policy: "float32" (the default) or "mixed_bfloat16". Attention logits and softmax, norms
            and the returned logits are float32 under both.
        name: The model's name, which the variables' paths begin with.
        kwargs: Further arguments of keras.Model.

    Call:
        token_ids: int [batch, seq], with seq <= n_ctx and ids below n_vocab.
        Returns float32 [batch, seq, n_vocab].

    Example:
        >>> model = GPTNeo.from_checkpoint("models/gpt-neo-125M")
        >>> model.compile("adam", loss=model.loss_fn)
        >>> model.fit(token_ids[:, :-1], token_ids[:, 1:])
    """

    def __init__(
        self, config: GPTNeoConfig, dtype: str | keras.DTypePolicy | None = None, name: str = ROOT, **kwargs: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.config = config
        self.seed_generator = keras.random.SeedGenerator()
        self._specs, inner = _divided(config)
        self.blocks = [
            Block(config, layer, variables, self.seed_generator, dtype=self.dtype_policy)
            for layer, variables in enumerate(inner)
        ]
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; the constructor calls it."""
        self._add_variables(self._specs, self.variable_dtype)
        for layer in self.blocks:
            layer.build()
        self.built = True

    def call(self, token_ids: KerasTensor, training: bool = False) -> KerasTensor:
        """Computes the logits: int [batch, seq] -> float32 [batch, seq, n_vocab]."""
        config, scope = self.config, self.scope
        shared = scope[""] if config.share_parameters else None
        h = embed(token_ids, scope, config, training, self.seed_generator)
        for layer in self.blocks:
            h = layer(h, training=training, scope=shared)
        return unembed(h, scope, config)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the logits' shape: [batch, seq] -> [batch, seq, n_vocab]."""
        return (*input_shape, self.config.n_vocab)

    @property
    def loss_fn(self) -> CrossEntropyWithZLoss:
        """The original's loss as a function of (labels, logits), with the config's z_loss; for model.compile.

        Raises:
            ConfigError: The config switches the original's entmax_loss on.
        """
        training = self.config.training
        if training.get("entmax_loss"):
            raise ConfigError("entmax_loss is not supported: it is not a number in the original's own training")
        z_loss = training.get("z_loss")
        return CrossEntropyWithZLoss(1e-4 if z_loss is None else z_loss)

    @property
    def canonical_weights(self) -> dict[str, keras.Variable]:
        """All variables, {canonical name: variable}. The names are the variables' paths if the model's name is gpt2."""
        weights = {f"{ROOT}/{name}": weight for name, weight in self.variables_by_name.items()}
        for layer in self.blocks:
            scope = layer_scope(self.config, layer.layer)
            weights |= {f"{ROOT}/{scope}/{name}": weight for name, weight in layer.variables_by_name.items()}
        return weights

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Stores every variable under its canonical name."""
        for path, weight in self.canonical_weights.items():
            store[storage_name(path)] = weight

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Loads every variable from its canonical name."""
        for path, weight in self.canonical_weights.items():
            weight.assign(store[storage_name(path)])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments in a form that Keras can store."""
        return {
            "config": self.config.to_original(),
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> GPTNeo:
        """Builds a model from get_config's result; custom_objects is Keras's, and not used."""
        values = dict(config)
        values["config"] = GPTNeoConfig.from_original(values["config"])
        if isinstance(values.get("dtype"), dict):
            values["dtype"] = keras.saving.deserialize_keras_object(values["dtype"])
        return cls(**values)

    @classmethod
    def from_checkpoint(
        cls,
        path: Checkpoint | Path | str,
        dtype: str | keras.DTypePolicy | None = None,
        progress: Progress = no_progress,
    ) -> GPTNeo:
        """Builds the model of a checkpoint in any format and loads its weights, tensor by tensor.

        Args:
            path: A folder, the original's `model.ckpt-N` prefix, a hub id, or an opened Checkpoint.
            dtype: See GPTNeo.
            progress: Called after each tensor with its bytes and its name.

        Raises:
            CheckpointError, ConfigError: See neo_tf.checkpoints.open_checkpoint.
        """
        from neo_tf.checkpoints import Checkpoint, open_checkpoint

        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        model = cls(checkpoint.config, dtype=dtype)
        for name, weight in model.canonical_weights.items():
            tensor = checkpoint.read(name)
            weight.assign(tensor.astype(weight.dtype, copy=False))
            progress(tensor.nbytes, name)
        return model


def _divided(config: GPTNeoConfig) -> tuple[dict[str, Variable], list[dict[str, Variable]]]:
    """Divides the model's variables into its own and those of each block; names are below the respective scope."""
    own: dict[str, Variable] = {}
    inner: list[dict[str, Variable]] = [{} for _ in range(config.n_layer)]
    scopes: dict[str, int] = {}
    if not config.share_parameters:
        scopes = {layer_scope(config, layer): layer for layer in range(config.n_layer)}
    for path, variable in model_variables(config).items():
        name = path.removeprefix(f"{ROOT}/")
        head, _, rest = name.partition("/")
        if head in scopes:
            inner[scopes[head]][rest] = variable
        else:
            own[name] = variable
    return own, inner
