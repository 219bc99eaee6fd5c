"""What a MODEL argument means; checkpoints are exported into the cache once."""

import contextlib
import json
import os
import shutil

import huggingface_hub
import pytest
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
import neo_tf.export.package
from neo_tf.errors import CheckpointError, NeoTFError
from neo_tf.model_cache import cache_folder, resolve_model
from neo_tf.runtime.device.session import Session
from neo_tf.text_generation import pipeline


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a golden checkpoint, to be changed."""
    return shutil.copytree(GOLDEN / "vocab-padded", tmp_path / "checkpoint")


@pytest.fixture
def exports(monkeypatch):
    """A list of the folders that are exported from now on."""
    done, real = [], neo_tf.export.package.export_onnx

    def counted(src, dst, *arguments, **options):
        done.append(dst)
        return real(src, dst, *arguments, **options)

    monkeypatch.setattr(neo_tf.export.package, "export_onnx", counted)
    return done


def test_an_onnx_folder_is_itself(cache, demo_folder):
    assert resolve_model(demo_folder) == demo_folder
    assert resolve_model(str(demo_folder)) == demo_folder
    assert not cache.exists()


def test_a_checkpoint_is_exported_once(cache, checkpoint, exports):
    folder = resolve_model(checkpoint)
    assert folder.parent == cache and [path.name for path in cache.iterdir()] == [folder.name]
    assert Session(folder).config.n_vocab == 320
    stamp = (folder / "model.onnx_data").stat().st_mtime_ns
    assert resolve_model(str(checkpoint)) == folder
    assert exports == [folder]
    assert (folder / "model.onnx_data").stat().st_mtime_ns == stamp


def test_two_ways_to_a_folder_are_one_export(cache, checkpoint, exports, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert resolve_model(checkpoint) == resolve_model("checkpoint") == resolve_model(f"{checkpoint}/.")
    assert len(exports) == 1


def test_a_prefix_is_a_checkpoint(cache, exports, reference):
    prompt, new = reference("microbatch-fp32").greedy["same_len"][0]
    for _ in range(2):
        generator = pipeline("text-generation", model=GOLDEN / "microbatch-fp32" / "model.ckpt-300", do_sample=False)
        (found,) = generator(prompt, max_new_tokens=len(new), return_tensors=True, return_full_text=False)
        assert found["generated_token_ids"] == new
    assert len(exports) == 1


@pytest.mark.parametrize("name", [".", "./"])
def test_the_current_folder_is_a_checkpoint(cache, checkpoint, monkeypatch, name):
    monkeypatch.chdir(checkpoint)
    assert resolve_model(name) == resolve_model(checkpoint)


def touch_config(folder):
    params = json.loads((folder / "config.json").read_text()) | {"local_attention_radius": 9}
    (folder / "config.json").write_text(json.dumps(params))


def other_time(folder):
    file = folder / "model.ckpt-300.data-00001-of-00002"
    os.utime(file, ns=(1, 1))


def demo_tokenizer():
    return TINY_PYTHON / "byte-level-bpe.tokenizer.json"


@pytest.mark.parametrize("change", [touch_config, other_time])
def test_a_changed_checkpoint_is_exported_again(cache, checkpoint, exports, change):
    first = resolve_model(checkpoint)
    change(checkpoint)
    second = resolve_model(checkpoint)
    assert second != first and exports == [first, second]
    assert resolve_model(checkpoint) == second and len(exports) == 2


def test_the_new_export_has_what_changed(cache, checkpoint):
    assert Session(resolve_model(checkpoint)).config.local_attention_radius == 8
    touch_config(checkpoint)
    assert Session(resolve_model(checkpoint)).config.local_attention_radius == 9


def test_another_tokenizer_is_another_export(cache, tmp_path, exports):
    source = shutil.copytree(TINY_PYTHON, tmp_path / "model")
    plain = resolve_model(source)
    named = resolve_model(source, tokenizer=demo_tokenizer())
    assert named != plain and len(exports) == 2
    assert resolve_model(source, tokenizer=str(demo_tokenizer())) == named


def test_an_export_that_fails_leaves_nothing_in_the_cache(cache, checkpoint):
    shard = checkpoint / "model.ckpt-300.data-00001-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError):
        resolve_model(checkpoint)
    assert not cache.exists() or not list(cache.iterdir())
    shard.write_bytes(whole)
    assert Session(resolve_model(checkpoint)).config.n_vocab == 320


def test_progress_is_shown_while_something_is_exported(cache, checkpoint):
    seen = []

    @contextlib.contextmanager
    def progress(size):
        seen.append(size)
        yield lambda size, name: seen.append(name)

    resolve_model(checkpoint, make_progress=progress)
    assert seen[0] == neo_tf.open_checkpoint(checkpoint).nbytes and "gpt2/wte" in seen
    del seen[:]
    resolve_model(checkpoint, make_progress=progress)
    assert seen == []


def test_the_cache_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("NEO_TF_CACHE")
    assert cache_folder().name == "neo-tf" and cache_folder().is_absolute()


@pytest.mark.parametrize("name", ["no-such-folder", "no/such/folder", "/no/such", "a b/c"])
def test_a_path_that_is_not_there_is_refused_in_one_line(cache, monkeypatch, tmp_path, name):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(NeoTFError) as error:
        resolve_model(name)
    assert "\n" not in str(error.value)
    assert not cache.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(cache, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(CheckpointError, match=r"photos: not a checkpoint"):
        resolve_model(tmp_path / "photos")
    assert not cache.exists()


# ---- hub ids


def test_a_hub_id_offline_is_one_clear_line(cache):
    with pytest.raises(CheckpointError) as error:
        pipeline("text-generation", model="EleutherAI/no-such-gpt-neo")
    message = str(error.value)
    assert message.startswith("EleutherAI/no-such-gpt-neo: no such folder") and "\n" not in message


@pytest.mark.parametrize("reason", [OSError(), TimeoutError("timed out\nmore"), ValueError("  ")])
def test_whatever_the_hub_says_is_one_line(cache, monkeypatch, reason):
    def fail(*arguments, **options):
        raise reason

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="some/model") as error:
        resolve_model("some/model")
    assert "\n" not in str(error.value)


def test_a_folder_of_the_same_name_comes_before_the_hub(cache, monkeypatch, demo_folder, tmp_path):
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "model").symlink_to(demo_folder)
    monkeypatch.chdir(tmp_path)
    assert Session(resolve_model("someone/model")).config.n_vocab == 2048
