"""Hyperparameters: what the original's training reads of its JSON config, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError
from neo_tf.json_files import read_json

# Keys without which the original's training crashes, whatever the optimizer is.
_REQUIRED = (
    "lr",
    "opt_name",
    "beta1",
    "warmup_steps",
    "gradient_clipping",
    "train_batch_size",
    "train_steps",
    "embed_dropout",
    "res_dropout",
    "iterations",
    "eval_steps",
    "predict_steps",
)
# Further keys that the optimizers need. Any opt_name but "adam" is Adafactor.
_REQUIRED_BY = {
    "adam": ("beta2", "epsilon"),
    "adafactor": ("weight_decay", "ada_epsilon1", "ada_epsilon2"),
}


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained, under the names of the original's config keys.

    Args:
        optimizer: "adam" or "adafactor".
        lr: The learning rate. Adam's is scheduled; Adafactor's is constant.
        train_batch_size: The number of sequences in a step's batch, over all replicas.
        train_steps: The step that training ends at.
        warmup_steps: The number of steps over which the learning rate rises from 0.
        gradient_clipping: The largest global norm of the gradients; 0 makes all gradients zero.
        beta1: The decay of Adam's first moment, or of Adafactor's momentum, which 0 switches off.
        beta2: The decay of Adam's second moment.
        epsilon: What Adam adds to the root of the second moment.
        ada_epsilon1: What Adafactor adds to the squares of the gradients.
        ada_epsilon2: The least size of a variable that Adafactor's step is measured by.
        weight_decay: Adam's decoupled weight decay; for Adafactor the decay of its second moment.
        lr_decay: "linear", "cosine", or None for a constant learning rate.
        lr_decay_end: The step from which on the learning rate is a tenth of lr. The default is train_steps.
        z_loss: The weight of log(Z)^2 in the loss.
        bfloat16: Whether forward and backward pass are computed in bfloat16.
        tokens_per_mb_per_replica: The number of tokens of a microbatch; None where a batch is not divided.
        recompute_grad: Whether the layers are computed again in the backward pass, which saves memory.

    Raises:
        ConfigError: A value cannot be used. The message names its key.

    Example:
        Hyperparameters.from_file("configs/gpt3_small_256.json").lr
    """

    optimizer: str
    lr: float
    train_batch_size: int
    train_steps: int
    warmup_steps: int
    gradient_clipping: float
    beta1: float
    beta2: float = 0.0
    epsilon: float = 0.0
    ada_epsilon1: float = 0.0
    ada_epsilon2: float = 0.0
    weight_decay: float = 0.0
    lr_decay: str | None = None
    lr_decay_end: int | None = None
    z_loss: float = 1e-4
    bfloat16: bool = False
    tokens_per_mb_per_replica: int | None = None
    recompute_grad: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "gradient_clipping", "epsilon", "ada_epsilon1", "ada_epsilon2", "weight_decay"):
            _require_number(name, getattr(self, name), 0, math.inf)
        for name in ("beta1", "beta2"):
            _require_number(name, getattr(self, name), 0, 1)
        _require_number("z_loss", self.z_loss, 0, math.inf)
        for name in ("train_batch_size", "train_steps"):
            _require_int(name, getattr(self, name), 1)
        _require_int("warmup_steps", self.warmup_steps, 0)
        if self.optimizer == "adafactor":
            _require_number("weight_decay", self.weight_decay, 0, 1)
        if self.tokens_per_mb_per_replica is not None:
            _require_int("tokens_per_mb_per_replica", self.tokens_per_mb_per_replica, 1)
        if self.lr_decay_end is None:
            object.__setattr__(self, "lr_decay_end", self.train_steps)
        _require_int("lr_decay_end", self.lr_decay_end, 1)

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Reads one of the original's JSON configs.

        Raises:
            ConfigError: As from_original; the message names the file.
        """
        params = read_json(path)
        try:
            if not isinstance(params, dict):
                raise ConfigError("a config must be a JSON object")
            return cls.from_original(params)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_original(cls, params: Mapping[str, Any]) -> Self:
        """Reads a config of EleutherAI/gpt-neo, as a dict, by the rules of the original's training.

        Raises:
            ConfigError: The original's training would crash on the config, or a value cannot be used.
        """
        _require_keys(params, _REQUIRED)
        opt_name = params["opt_name"]
        if not isinstance(opt_name, str):
            raise ConfigError(f"opt_name must be a name, not {opt_name!r}")
        optimizer = "adam" if opt_name.lower() == "adam" else "adafactor"
        _require_keys(params, _REQUIRED_BY[optimizer], f" (opt_name {opt_name!r} needs it)")
        config = GPTNeoConfig.from_original(dict(params))
        if "global" in config.attention_types:
            _require_keys(params, ("attn_dropout",), " (global attention needs it)")
        if config.moe_layers and "moe_dropout_rate" not in config.moe_params:
            raise ConfigError("missing moe_dropout_rate in moe_params: the original's training needs it")
        if params.get("entmax_loss"):
            raise ConfigError("entmax_loss is not supported: it is not a number in the original's own training")
        if "z_loss" in params and params["z_loss"] is None:
            raise ConfigError("z_loss must be a number, not null")
        decay = params.get("lr_decay")
        values = {key: params[key] for key in (*_REQUIRED_BY[optimizer], "z_loss", "lr_decay_end") if key in params}
        return cls(
            **{
                "optimizer": optimizer,
                "lr": params["lr"],
                "train_batch_size": params["train_batch_size"],
                "train_steps": params["train_steps"],
                "warmup_steps": params["warmup_steps"],
                "gradient_clipping": params["gradient_clipping"],
                "beta1": params["beta1"],
                "weight_decay": params.get("weight_decay") or 0.0,
                "lr_decay": decay if decay in ("linear", "cosine") else None,
                "bfloat16": params.get("precision") == "bfloat16",
                "tokens_per_mb_per_replica": params.get("tokens_per_mb_per_replica"),
                "recompute_grad": bool(params.get("recompute_grad")),
            }
            | values
        )

    def microbatches(self, n_ctx: int, replicas: int = 1) -> int:
        """The number of microbatches that each replica's part of a batch is divided into.

        A microbatch has as many rows as tokens_per_mb_per_replica allows, but at least one, and a number that divides
        the replica's rows.

        Args:
            n_ctx: The number of tokens in a row.
            replicas: The number of replicas that share a batch.

        Raises:
            ConfigError: The batch cannot be divided among the replicas.
        """
        if self.train_batch_size % replicas:
            raise ConfigError(f"train_batch_size {self.train_batch_size} is not divisible by {replicas} replicas")
        rows = self.train_batch_size // replicas
        if self.tokens_per_mb_per_replica is None:
            return 1
        size = min(max(1, self.tokens_per_mb_per_replica // n_ctx), rows)
        while rows % size:
            size -= 1
        return rows // size


def _require_keys(params: Mapping[str, Any], keys: tuple[str, ...], why: str = "") -> None:
    missing = [key for key in keys if params.get(key) is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}: the original's training needs it{why}")


def _require_number(name: str, value: object, least: float, limit: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < limit:
        above = f"in [{least}, {limit})" if limit < math.inf else "that is not negative"
        raise ConfigError(f"{name} must be a number {above}, not {value!r}")


def _require_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer from {least} on, not {value!r}")
