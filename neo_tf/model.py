"""GPTNeo in Keras: the original's models/gpt2/gpt2.py. export/graph.py is the ONNX twin."""

import contextlib

import keras

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError
from neo_tf.layers import attn, embed, layer_norm, mlp, rezero, scale_norm, unembed
from neo_tf.moe import moe
from neo_tf.training.loss import CrossEntropyWithZLoss
from neo_tf.variables import ROOT, layer_scope, model_variables, storage_name


class Scope(dict):
    """A scope of the original: {"g": variable} or {"attn": Scope}, as its names nest."""

    def insert(self, name, variable):
        """Files a variable under a name such as "attn/q"."""
        head, _, rest = name.partition("/")
        if rest:
            self.setdefault(head, Scope()).insert(rest, variable)
        else:
            self[head] = variable


def block(x, scope, layer, config, training=False, seed=None):
    """One layer of the original: x += attn(norm_1(x)); x += mlp(norm_2(x)). x: [batch, seq, embd].

    Attention type "none" adds x to itself. macaron's first mlp has neither norm nor rezero. Returns x and, of a
    mixture of experts, its auxiliary loss.
    """
    if config.macaron:
        x = x + mlp(x, scope["mlp_macaron"], config, training, seed) * 0.5

    def prenorm(x, name):
        if config.rezero:
            return x
        return (scale_norm if config.scalenorm else layer_norm)(x, scope[name], config)

    a = x
    if config.attention_types[layer] != "none":
        a = attn(prenorm(x, "norm_1"), scope["attn"], layer, config, training, seed)
    x = x + (rezero(a, scope["norm_rezero_1"]) if config.rezero else a)

    h, loss = prenorm(x, "norm_2"), None
    if layer in config.moe_layers:
        m, loss = moe(h, scope, config, training, seed)
    else:
        m = mlp(h, scope["mlp"], config, training, seed)
    m = m * 0.5 if config.macaron else m
    return x + (rezero(m, scope["norm_rezero_2"]) if config.rezero else m), loss


class _Scoped:
    """What GPTNeo and its blocks share: they create variables whose paths are the original's names."""

    def _add_variables(self, variables):
        scope, weights = Scope(), {}
        for name, variable in variables.items():
            *inner, last = name.split("/")
            with contextlib.ExitStack() as stack:
                for part in inner:
                    stack.enter_context(keras.name_scope(part))
                initializer = (
                    keras.initializers.RandomNormal(variable.mean, variable.stddev)
                    if variable.stddev
                    else keras.initializers.Constant(variable.mean)
                )
                # Not add_weight: it would leave the inner scopes out of the path.
                weight = keras.Variable(initializer, variable.shape, dtype=self.variable_dtype, name=last)
            weights[name] = weight
            scope.insert(name, weight)
        self.variables_by_name = weights  # an attribute that Keras tracks
        object.__setattr__(self, "scope", scope)  # and the same, nested, that it need not


@keras.saving.register_keras_serializable("neo_tf")
class Block(_Scoped, keras.layers.Layer):
    """A layer of the model, named h0, h1, ... as in the original.

    Args:
        config: a GPTNeoConfig.
        layer: its number.
        variables: {name: Variable} below its scope; none where all layers share the model's.
        seed_generator: for dropout.
    """

    def __init__(self, config, layer, variables, seed_generator, **kwargs):
        super().__init__(name=f"h{layer}", **kwargs)
        self.config, self.layer = config, layer
        self.seed_generator = seed_generator
        self._specs = dict(variables)

    def build(self, input_shape=None):
        """Creates the variables."""
        self._add_variables(self._specs)
        self.built = True

    def call(self, x, training=False, scope=None):
        """[batch, seq, embd] -> [batch, seq, embd]; `scope` holds variables that are not the block's own."""
        x, loss = block(x, scope or self.scope, self.layer, self.config, training, self.seed_generator)
        if loss is not None:
            self.add_loss(loss)  # the original adds it in training and in evaluation
        return x

    def compute_output_shape(self, input_shape):
        """A block keeps its input's shape."""
        return input_shape

    def save_own_variables(self, store):
        """Nothing: the model stores all variables under their canonical names."""

    def load_own_variables(self, store):
        """Nothing: see GPTNeo.load_own_variables."""


@keras.saving.register_keras_serializable("neo_tf")
class GPTNeo(_Scoped, keras.Model):
    """GPT-Neo, with the original's names as variable paths.

    Args:
        config: a GPTNeoConfig.
        dtype: a Keras dtype policy: "float32" (default) or "mixed_bfloat16". Attention logits and softmax, norms and
            the returned logits are float32 under both.

    Call:
        token_ids: int [batch, seq], seq <= n_ctx, ids below n_vocab.
        Returns float32 [batch, seq, n_vocab].

    Example:
        >>> model = GPTNeo.from_checkpoint("models/gpt-neo-125M")
        >>> model.compile("adam", loss=model.loss_fn)
        >>> model.fit(token_ids[:, :-1], token_ids[:, 1:])
    """

    def __init__(self, config, dtype=None, name=ROOT, **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.config = config
        self.seed_generator = keras.random.SeedGenerator()
        own, inner = {}, {layer: {} for layer in range(config.n_layer)}
        scopes = {} if config.share_parameters else {layer_scope(config, layer): layer for layer in inner}
        for path, variable in model_variables(config).items():
            name = path.removeprefix(f"{ROOT}/")
            head, _, rest = name.partition("/")
            if head in scopes:
                inner[scopes[head]][rest] = variable
            else:
                own[name] = variable
        self._specs = own
        self.blocks = [
            Block(config, layer, variables, self.seed_generator, dtype=self.dtype_policy)
            for layer, variables in inner.items()
        ]
        self.build()

    def build(self, input_shape=None):
        """Creates all variables; done by the constructor."""
        self._add_variables(self._specs)
        for layer in self.blocks:
            layer.build()
        self.built = True

    def call(self, token_ids, training=False):
        """int [batch, seq] -> float32 [batch, seq, n_vocab]."""
        config, scope = self.config, self.scope
        h = embed(token_ids, scope, config, training, self.seed_generator)
        for layer in self.blocks:
            h = layer(h, training=training, scope=scope[""] if config.share_parameters else None)
        return unembed(h, scope, config)

    def compute_output_shape(self, input_shape):
        """[batch, seq] -> [batch, seq, n_vocab]."""
        return (*input_shape, self.config.n_vocab)

    @property
    def loss_fn(self):
        """The original's loss as a function of (labels, logits), with the config's z_loss; for model.compile.

        Raises:
            ConfigError: the config asks for the original's entmax_loss.
        """
        training = self.config.training
        if training.get("entmax_loss"):
            raise ConfigError("entmax_loss is not supported: it is not a number in the original's own training")
        z_loss = training.get("z_loss")
        return CrossEntropyWithZLoss(1e-4 if z_loss is None else z_loss)

    @property
    def canonical_weights(self):
        """{canonical name: keras variable}; the names are the variables' paths, unless the model got another name."""
        weights = {f"{ROOT}/{name}": weight for name, weight in self.variables_by_name.items()}
        for layer in self.blocks:
            scope = layer_scope(self.config, layer.layer)
            weights |= {f"{ROOT}/{scope}/{name}": weight for name, weight in layer.variables_by_name.items()}
        return weights

    def save_own_variables(self, store):
        """Stores every variable under its canonical name."""
        for path, weight in self.canonical_weights.items():
            store[storage_name(path)] = weight

    def load_own_variables(self, store):
        """Loads every variable from its canonical name."""
        for path, weight in self.canonical_weights.items():
            weight.assign(store[storage_name(path)])

    def get_config(self):
        """What from_config needs."""
        return {
            "config": self.config.to_original(),
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, values):
        """Builds a model from get_config's result."""
        values = dict(values)
        values["config"] = GPTNeoConfig.from_original(values["config"])
        if isinstance(values.get("dtype"), dict):
            values["dtype"] = keras.saving.deserialize_keras_object(values["dtype"])
        return cls(**values)

    @classmethod
    def from_checkpoint(cls, path, dtype=None, progress=None):
        """Builds the model of a checkpoint in any format and loads its weights, tensor by tensor.

        Args:
            path: a folder, the original's `model.ckpt-N` prefix, or an opened Checkpoint.
            dtype: as for GPTNeo.
            progress: called as progress(bytes, name) after each tensor; see neo_tf.progress.Progress.

        Raises:
            CheckpointError, ConfigError: see neo_tf.checkpoints.open_checkpoint.
        """
        from neo_tf.checkpoints import Checkpoint, open_checkpoint

        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        model = cls(checkpoint.config, dtype=dtype)
        for name, weight in model.canonical_weights.items():
            tensor = checkpoint.read(name)
            weight.assign(tensor.astype(weight.dtype, copy=False))
            if progress:
                progress(tensor.nbytes, name)
        return model
