"""Tokenizer classes that build a tokenizer anew from a vocabulary, whatever else stands in tokenizer.json.

transformers 5 does so for most classes that a tokenizer_config.json can name: normalizer, pre-tokenizer and decoder are
those of the class. Those of them that lie beside GPT-Neos are here; the others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.processors import PostProcessor

END_OF_TEXT = "<|endoftext|>"
# Qwen2's way to divide a text, before its bytes are looked up.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """What a class takes of the files.

    Args:
        tokens: {token: id}; for Unigram [(token, score), ...].
        merges: The pairs that BPE merges, in order.
        charsmap: SentencePiece's table of characters, as tokenizer.json's normalizer holds it; None without one.
    """

    tokens: Any
    merges: list[tuple[str, str]] = field(default_factory=list)
    charsmap: str | None = None


@dataclass(frozen=True)
class TokenizerClass:
    """A class of transformers.

    Args:
        build: Makes the tokenizer of a vocabulary and the settings of tokenizer_config.json.
        special_tokens: The special tokens that hold where the settings name no others; None for none.
        around: Makes the post-processor of the special tokens and their ids, whatever tokenizer.json says. None
            leaves tokenizer.json's.
        model: The kind of model: BPE, WordPiece or Unigram.
        keeps_processor: Whether tokenizer.json's post-processor is used where `around` is None.
        reads_merges: Whether it is also made of vocab.json and merges.txt.
        names_all: Whether each special token that has a name is added as one.
    """

    build: Callable[[Vocabulary, Mapping[str, Any]], Tokenizer]
    special_tokens: Mapping[str, str | None]
    around: Callable[[Mapping[str, str], Callable[[str], int | None]], PostProcessor] | None = None
    model: str = "BPE"
    keeps_processor: bool = True
    reads_merges: bool = False
    names_all: bool = False


def _gpt2(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt_neox(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import normalizers

    tokenizer = _gpt2(vocabulary, settings)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _qwen2(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer = _gpt2(vocabulary, settings)
    tokenizer.normalizer = normalizers.NFC()
    prefix = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return tokenizer


def _llama(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges, fuse_unk=True, byte_fallback=True)
    )
    prefix = settings.get("add_prefix_space")
    scheme = "never"
    if prefix or prefix is None:
        scheme = "always" if settings.get("legacy") else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme != "never":
        parts.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _gemma(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = str(settings.get("unk_token"))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.tokens, merges=vocabulary.merges, fuse_unk=True, unk_token=unknown, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _bert(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary.tokens, unk_token=str(settings.get("unk_token"))))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _xlm_roberta(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(vocabulary.tokens, unk_id=3, byte_fallback=False))
    _apply_charsmap(tokenizer, vocabulary)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def _apply_charsmap(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    from base64 import b64decode

    from tokenizers import normalizers

    if vocabulary.charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(b64decode(vocabulary.charsmap))


def _template(begin: str, end: str, id_of: Callable[[str], int | None]) -> PostProcessor:
    """One token before a text, and one after it."""
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=[begin, "$A", end], pair=None, special_tokens=[(begin, id_of(begin)), (end, id_of(end))]
    )


def _cls_and_sep(special: Mapping[str, str], id_of: Callable[[str], int | None]) -> PostProcessor:
    return _template(special["cls_token"], special["sep_token"], id_of)


def _bos_and_eos(special: Mapping[str, str], id_of: Callable[[str], int | None]) -> PostProcessor:
    return _template(special["bos_token"], special["eos_token"], id_of)


_ENDS = {"unk_token": END_OF_TEXT, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
_OF_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_OF_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_OF_QWEN2 = {"unk_token": END_OF_TEXT, "bos_token": None, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
_OF_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_OF_GEMMA = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}

_GPT2 = TokenizerClass(_gpt2, {**_ENDS, "pad_token": None}, reads_merges=True)
_GPT_NEOX = TokenizerClass(_gpt_neox, {**_ENDS, "pad_token": "<|padding|>"}, keeps_processor=False, reads_merges=True)
_BERT = TokenizerClass(_bert, _OF_BERT, _cls_and_sep, model="WordPiece")
_ROBERTA = TokenizerClass(_gpt2, _OF_ROBERTA, _cls_and_sep, reads_merges=True)

# By their names without "Fast".
CLASSES: Mapping[str, TokenizerClass] = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT_NEOX,
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "MvpTokenizer"), _ROBERTA),
    **dict.fromkeys(
        (
            *("BertTokenizer", "DistilBertTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"),
            *("LxmertTokenizer", "DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer"),
        ),
        _BERT,
    ),
    "Qwen2Tokenizer": TokenizerClass(_qwen2, _OF_QWEN2, reads_merges=True, names_all=True),
    "LlamaTokenizer": TokenizerClass(_llama, _OF_LLAMA),
    "GemmaTokenizer": TokenizerClass(_gemma, _OF_GEMMA),
    "XLMRobertaTokenizer": TokenizerClass(_xlm_roberta, _OF_ROBERTA, _bos_and_eos, model="Unigram"),
}

# Classes that transformers knows and neo-tf does not: their text would be another one than tokenizer.json's.
UNKNOWN_HERE = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Albert", "Barthez", "Bartpho", "BertGeneration", "BertJapanese", "Bertweet", "BigBird", "BioGpt"),
        *("Blenderbot", "BlenderbotSmall", "ByT5", "CLIP", "CTRL", "Camembert", "Canine", "Clvp", "CodeLlama"),
        *("Cohere", "ConvBert", "Cpm", "CpmAnt", "Deberta", "DebertaV2", "Dia", "Esm", "Esmc", "FNet", "FSMT"),
        *("FastSpeech2Conformer", "Flaubert", "Funnel", "GPTNeoXJapanese", "GPTSw3", "Herbert", "Lasr"),
        *("LayoutLMv2", "LayoutLMv3", "LayoutXLM", "Luke", "M2M100", "MBart", "MBart50", "MLuke", "MPNet"),
        *("Marian", "MarkupLM", "Mgpstr", "MyT5", "Nllb", "Nougat", "OpenAIGPT", "PLBart", "Parakeet", "Pegasus"),
        *("Perceiver", "Phobert", "Pop2Piano", "ProphetNet", "Qwen3_5", "Rag", "Reformer", "RemBert", "RoCBert"),
        *("RoFormer", "SeamlessM4T", "Siglip", "Siglip2", "Speech2Text", "SpeechT5", "Splinter", "T5", "Tapas"),
        *("Tipsv2", "Udop", "VideoPrism", "Vits", "Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "Whisper", "XGLM", "XLM"),
        "XLNet",
    )
)
