"""Where a training begins: a config and random weights, a checkpoint to be fine-tuned, or a run that goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from neo_tf.checkpoints.checkpoint import Checkpoint
from neo_tf.checkpoints.initialise import drawn_checkpoint
from neo_tf.checkpoints.mesh_tf import GLOBAL_STEP
from neo_tf.checkpoints.model_files import read_files
from neo_tf.checkpoints.open import open_checkpoint
from neo_tf.checkpoints.tokenizer_files import with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.json_files import read_json
from neo_tf.training.presets import preset, preset_names
from neo_tf.training.saving import Saver
from neo_tf.training.state import TrainingState, read_state

# What the original's configs say of training, for a checkpoint whose config says nothing. The learning rate, the batch
# size and the number of steps are not among them: they are the user's to choose.
_DEFAULTS: dict[str, Any] = {
    "opt_name": "adam",
    "lr_decay": "cosine",
    "warmup_steps": 0,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "iterations": 500,
    "eval_steps": 0,
    "predict_steps": 0,
}
_DROPOUTS = ("embed_dropout", "attn_dropout", "res_dropout")
# What a checkpoint's training cannot change.
_FREE = (*_DROPOUTS, "precision", "training", "eos_token_id", "pad_token_id", "moe_params")
_SHAPE = tuple(field.name for field in fields(GPTNeoConfig) if field.name not in _FREE)


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Args:
        checkpoint: The model.
        params: The config, with the hyperparameters.
        state: The state that the training goes on from; None where it begins at step 0.
    """

    checkpoint: Checkpoint
    params: Mapping[str, Any]
    state: TrainingState | None = None


def new_start(
    source: Path | str,
    changes: Mapping[str, Any],
    *,
    seed: int = 0,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
    steps: int | None = None,
) -> Start:
    """A training from step 0.

    Args:
        source: The original's JSON config or a preset's name, for random weights; or a checkpoint in any format.
        changes: Keys of the config that are replaced.
        seed: The seed of random weights.
        tokenizer: As in open_checkpoint.
        config: A JSON file whose keys replace those of the checkpoint's config.
        steps: The config's train_steps where a checkpoint's config has none.

    Raises:
        CheckpointError, ConfigError: The source cannot be used.
    """
    path = Path(source)
    is_preset = _is_preset(source)
    if not is_preset and not _is_config(source):
        return _fine_tuning(source, changes, tokenizer, config, steps)
    if config is not None:
        raise RequestError("--config goes with a checkpoint: SRC is a config itself")
    params = _changed(preset(str(source)) if is_preset else read_json(path), changes, None, source)
    folder = None if is_preset else path.parent
    try:
        model = GPTNeoConfig.from_original(params)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    if folder is not None:
        model = with_token_ids(model, folder)
    files = read_files("random", folder, model, tokenizer, needs_tokenizer=False)
    return Start(drawn_checkpoint(path, model, seed, files), params)


def _is_preset(source: Path | str) -> bool:
    return str(source) in preset_names() and not Path(source).exists()


def _is_config(source: Path | str) -> bool:
    return Path(source).is_file() and Path(source).suffix == ".json"


def _fine_tuning(
    source: Path | str,
    changes: Mapping[str, Any],
    tokenizer: Path | str | None,
    config: Path | str | None,
    steps: int | None,
) -> Start:
    checkpoint = open_checkpoint(source, tokenizer)
    params = {**_DEFAULTS, **checkpoint.config.to_original()}
    params.pop(GLOBAL_STEP, None)
    if steps is not None:
        params.setdefault("train_steps", steps)
    params = _changed(params, changes, config, source)
    return Start(_configured(checkpoint, params), params)


def going_on(
    source: Path | str,
    saver: Saver,
    changes: Mapping[str, Any],
    *,
    seed: int = 0,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
) -> Start:
    """A training that goes on: from the newest checkpoint of the run, or else from the source's own state.

    Args:
        source: A run, a checkpoint of one, or a checkpoint of the original's. A config or a preset's name begins a new
            training where the run has no checkpoint.
        saver: The run that will be written.
        changes: Keys of the config that are replaced.
        seed: The seed of random weights.
        tokenizer: As in open_checkpoint.
        config: A JSON file whose keys replace those of the checkpoint's config.

    Raises:
        CheckpointError, ConfigError: See read_state.
    """
    if saver.latest() is None and (_is_preset(source) or _is_config(source)):
        return new_start(source, changes, seed=seed, tokenizer=tokenizer, config=config)
    path = saver.latest() or Saver(source).latest() or source
    state = read_state(path, tokenizer)
    params = _changed(state.params, changes, config, path)
    return Start(_configured(state.checkpoint, params), params, state)


def _changed(params: Any, changes: Mapping[str, Any], config: Path | str | None, source: Path | str) -> dict[str, Any]:
    """A config with the keys of a file, and then those of the options, replaced."""
    given = {} if config is None else read_json(config)
    for value, path in ((params, source), (given, config)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: a config must be a JSON object")
    return {**params, **given, **changes}


def _configured(checkpoint: Checkpoint, params: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint whose config has the dropouts and the training keys of `params`.

    Raises:
        ConfigError: They describe another model.
    """
    own = checkpoint.config
    wanted = GPTNeoConfig.from_original(dict(params))
    for name in _SHAPE:
        if getattr(wanted, name) != getattr(own, name):
            raise ConfigError(
                f"{checkpoint.path}: {name} is {getattr(own, name)}, but the config for the training says "
                f"{getattr(wanted, name)}"
            )
    changed = own.replace(training=wanted.training, **{name: getattr(wanted, name) for name in _DROPOUTS})
    return replace(checkpoint, config=changed)
