"""Draws the files of a tokenizer at random: its kind, its parts, and where its settings and special tokens stand."""

import itertools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = (
    *("the", "cat", "sat", "on", "mat", "hello", "world", "Hello", "it", "is", "do", "n't", "'s", "he", "end", "def"),
    *(".", ",", "!", "?", "'", "(", ")", "12", "3", "naïve", "é", "É", "你好", "🎉", "ﬁ", "x"),
)
UNKNOWN = "[UNK]"
END = "<|endoftext|>"
SPECIAL = (END, "<pad>", "<s>", "</s>", "<|im_end|>", "[MASK]", "[SEP]", "[CLS]", "cat", "new word", "Ünew", " lead")
BLANKS = (" ", " ", " ", "  ", "\n", "\t", "\u00a0", " \r\n", "\u3000", "")
ODD = (
    "▁",
    "##s",
    "<0x41>",
    "<0xE4>",
    "\u200b",
    "e\u0301",
    "\ufffd",
    "Ġ",
    "</w>",
    "zz",
    "QQ",
    "[",
    "<",
    "\x00",
    "Ω",
    "한",
)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CLASSES = (
    *(None, None, None, "GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizerFast", "GPTNeoXTokenizerFast"),
    *("PreTrainedTokenizerFast", "PreTrainedTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    *("PreTrainedTokenizer", "OfSomebodysOwn"),
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def random_text(draw, special=SPECIAL):
    """A text of words, blanks, special tokens and odd characters; sometimes it is empty, or blanks alone."""
    kinds = [WORDS, WORDS, WORDS, WORDS, ODD, special]
    parts = []
    for _ in range(draw.choice([0, 1, 2, 4, 7, 12])):
        parts += [draw.choice(draw.choice(kinds) or WORDS), draw.choice(BLANKS)]
    return "".join(parts if draw.random() < 0.9 else parts[1::2])


def random_tokenizer_files(draw):
    """The files of a tokenizer, {name: content}; config.json's tokenizer_class is under the name ""."""
    kind = draw.choice(KINDS)
    made = kind(draw)
    _set_parts(draw, made)
    made.add_tokens([_added(draw, token) for token in draw.sample(SPECIAL, draw.randrange(4))])
    if draw.random() < 0.5:
        made.add_special_tokens([_added(draw, token) for token in draw.sample(SPECIAL[:6], draw.randrange(1, 4))])
    _set_state(draw, made)
    whole = json.loads(made.to_str())
    files = {}
    layout = draw.choice(["json", "json", "json", "both", "vocabulary"])
    if layout != "json" and whole["model"]["type"] == "BPE":
        vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
        files["vocab.json"] = _json(vocab)
        first = draw.choice(["#version: 0.2\n", ""])
        files["merges.txt"] = (first + "\n".join(" ".join(pair) for pair in merges) + draw.choice(["\n", ""])).encode()
    if layout != "vocabulary" or not files:
        if draw.random() < 0.3 and whole["model"]["type"] == "BPE":  # as older versions wrote them
            merges = whole["model"]["merges"]
            whole["model"]["merges"] = [" ".join(pair) for pair in merges]
        files["tokenizer.json"] = _json(whole)
    _add_settings(draw, files, made)
    return files


def _json(value):
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


# ---- kinds


def _byte_level(draw):
    """GPT-2's kind, with merges that were learnt from the words."""
    with_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [list(with_bytes.pre_tokenize_str(f" {word}")[0][0]) for word in WORDS]
    vocab = {token: index for index, token in enumerate([END, *BYTES] if draw.random() < 0.7 else [*BYTES, END])}
    merges = _learnt(draw, words, vocab, most=60)
    if draw.random() < 0.2:
        del vocab[END]
        vocab = {token: index for index, token in enumerate(vocab)}
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(draw.random() < 0.4, use_regex=draw.random() < 0.9)
    made.decoder = decoders.ByteLevel()
    return made


def _learnt(draw, words, vocab, most):
    """Merges of pairs in words, fewer than `most`; the vocabulary gains what they make."""
    merges = []
    for _ in range(draw.randrange(most)):
        pairs = sorted({(a, b) for word in words for a, b in itertools.pairwise(word) if a in vocab and b in vocab})
        if not pairs:
            break
        pair = draw.choice(pairs)
        merges.append(pair)
        vocab.setdefault("".join(pair), len(vocab))
        words = [_merged(word, pair) for word in words]
    return merges


def _merged(word, pair):
    found = []
    for part in word:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def _bpe(draw):
    """BPE of characters: with ends of words, or with ▁ and bytes."""
    ends = draw.random() < 0.4
    letters = sorted(set("".join(WORDS)) - ({"é"} if draw.random() < 0.5 else set()))
    words = [[*word[:-1], f"{word[-1]}</w>"] if ends else ["▁", *word] for word in WORDS]
    tokens = [UNKNOWN, "▁", *letters, *(f"{letter}</w>" for letter in letters if ends)]
    fallback = not ends and draw.random() < 0.5
    if fallback:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _learnt(draw, words, vocab, most=50)
    options = {"unk_token": UNKNOWN} if draw.random() < 0.8 else {}
    options |= {"end_of_word_suffix": "</w>"} if ends else {}
    made = Tokenizer(models.BPE(vocab, merges, fuse_unk=draw.random() < 0.5, byte_fallback=fallback, **options))
    made.pre_tokenizer = pre_tokenizers.Whitespace() if ends else _metaspace(draw)
    made.decoder = decoders.BPEDecoder() if ends else _of_metaspace(draw, fallback)
    return made


def _word_level(draw):
    tokens = [UNKNOWN, *draw.sample(WORDS, draw.randrange(5, len(WORDS))), *draw.sample(SPECIAL, 2)]
    made = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    made.pre_tokenizer = draw.choice([pre_tokenizers.Whitespace, pre_tokenizers.WhitespaceSplit])()
    return made


def _word_piece(draw):
    pieces = [word[:2] for word in WORDS] + [f"##{word[2:]}" for word in WORDS if word[2:]]
    tokens = dict.fromkeys([UNKNOWN, "[CLS]", "[SEP]", *draw.sample(WORDS, 15), *pieces, "##s", "##."])
    made = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer(lowercase=draw.random() < 0.5)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=draw.random() < 0.5)
    return made


def _unigram(draw):
    pieces = [f"▁{word}" for word in draw.sample(WORDS, 20)] + [*WORDS, *sorted(set("".join(WORDS[:16])))]
    fallback = draw.random() < 0.5
    extra = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    scored = [(piece, -draw.randrange(10, 90) / 10) for piece in dict.fromkeys(["▁", *pieces])]
    made = Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), ("</s>", 0.0), *scored, *((e, -9.0) for e in extra)], unk_id=0, byte_fallback=fallback
        )
    )
    made.pre_tokenizer = _metaspace(draw)
    made.decoder = _of_metaspace(draw, fallback)
    return made


def _metaspace(draw):
    return pre_tokenizers.Metaspace(prepend_scheme=draw.choice(["always", "first", "never"]), split=draw.random() < 0.8)


def _of_metaspace(draw, fallback):
    if not fallback:
        return decoders.Metaspace(prepend_scheme=draw.choice(["always", "first", "never"]))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts[: draw.choice([3, 4, 4])])


KINDS = (_byte_level, _byte_level, _byte_level, _bpe, _word_level, _word_piece, _unigram)


# ---- parts and state


def _set_parts(draw, made):
    """Now and then another normalizer, pre-tokenizer or decoder than the kind's own; and a post-processor."""
    if draw.random() < 0.3:
        made.normalizer = draw.choice(NORMALIZERS)()
    if draw.random() < 0.15:
        made.pre_tokenizer = draw.choice(PRE_TOKENIZERS)(draw)
    if draw.random() < 0.15:
        made.decoder = draw.choice(DECODERS)()
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]", END, "</s>") if made.token_to_id(token)]
    kind = draw.choice(["none", "none", "bytes", "template", "template", "bytes and template", "Roberta"])
    template = None
    if ends:
        single = draw.choice(["{0} $A", "$A {0}", "{0} $A {0}", "$A"]).format(draw.choice(ends)[0])
        template = processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=ends)
    if kind == "bytes":
        made.post_processor = processors.ByteLevel(trim_offsets=draw.random() < 0.5)
    elif kind == "template" and template:
        made.post_processor = template
    elif kind == "bytes and template" and template:
        made.post_processor = processors.Sequence([processors.ByteLevel(), template])
    elif kind == "Roberta" and ends:
        made.post_processor = processors.RobertaProcessing(ends[-1], ends[0])


NORMALIZERS = (
    *(normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.Lowercase, normalizers.Strip),
    lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    lambda: normalizers.Replace(Regex(r"\s+"), " "),
    lambda: normalizers.BertNormalizer(),
)
PRE_TOKENIZERS = (
    _metaspace,
    lambda draw: pre_tokenizers.Whitespace(),
    lambda draw: pre_tokenizers.WhitespaceSplit(),
    lambda draw: pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.5),
    lambda draw: pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]),
    lambda draw: pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)]),
    lambda draw: pre_tokenizers.Split(Regex(r"\s?\w+|\s+"), draw.choice(["isolated", "removed", "merged_with_next"])),
)
DECODERS = (
    *(decoders.ByteLevel, decoders.Metaspace, decoders.WordPiece, decoders.BPEDecoder, decoders.Fuse, decoders.CTC),
    lambda: decoders.Replace("▁", " "),
    lambda: decoders.Strip(" ", 1, 1),
    lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]),
)


def _set_state(draw, made):
    """What a training left in the tokenizer."""
    if draw.random() < 0.25:
        made.enable_truncation(
            draw.randrange(3, 8), direction=draw.choice(["left", "right"]), stride=draw.choice([0, 1])
        )
    if draw.random() < 0.25:
        made.enable_padding(
            direction=draw.choice(["left", "right"]),
            pad_id=draw.randrange(3),
            pad_token=draw.choice(["<pad>", "[PAD]", UNKNOWN]),
            length=draw.choice([None, 9]),
        )


def _added(draw, token):
    flags = {name: draw.random() < 0.2 for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(token, normalized=draw.random() < 0.3, special=draw.random() < 0.5, **flags)


# ---- files beside the tokenizer


def _add_settings(draw, files, made):
    declared = draw.choice(CLASSES)
    settings = {"tokenizer_class": declared} if declared else {}
    if draw.random() < 0.6:
        for name in draw.sample(NAMES, draw.randrange(5)):
            settings[name] = _declared(draw, name)
        settings |= _loose_settings(draw)
    if draw.random() < 0.35:
        settings["added_tokens_decoder"] = _decoder(draw, made)
    if settings or draw.random() < 0.5:
        place = draw.random()
        if place < 0.1 and declared:  # the class stands in config.json
            files[""] = settings.pop("tokenizer_class")
        files["tokenizer_config.json"] = _json(settings)
    if draw.random() < 0.3:
        known = {name: _declared(draw, name) for name in draw.sample(NAMES, draw.randrange(4))}
        if draw.random() < 0.3:
            known["additional_special_tokens"] = [_as_file(draw, token) for token in draw.sample(SPECIAL, 2)]
        if draw.random() < 0.1:
            known["extra_special_tokens"] = draw.sample(SPECIAL, 2)
        files["special_tokens_map.json"] = _json(known)
    if draw.random() < 0.25:
        first = made.get_vocab_size()
        files["added_tokens.json"] = _json({token: first + i for i, token in enumerate(draw.sample(SPECIAL, 2))})


def _declared(draw, name):
    if name == "unk_token" and draw.random() < 0.7:
        return UNKNOWN
    return _as_file(draw, draw.choice(SPECIAL))


def _as_file(draw, token):
    """A token as files declare it: as text or as an object."""
    if draw.random() < 0.6:
        return token
    flags = _flags(_added(draw, token))
    return {"__type": "AddedToken", **flags} if draw.random() < 0.8 else flags


def _flags(token):
    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return {name: getattr(token, name) for name in names}


def _loose_settings(draw):
    every = {
        "additional_special_tokens": [_as_file(draw, token) for token in draw.sample(SPECIAL, 2)],
        "extra_special_tokens": draw.choice([["<a>", "cat"], {"image_token": "<image>"}, []]),
        "add_bos_token": draw.random() < 0.6,
        "add_eos_token": draw.random() < 0.6,
        "add_prefix_space": draw.random() < 0.7,
        "clean_up_tokenization_spaces": draw.random() < 0.7,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        "model_max_length": draw.choice([5, 512, 10**30, None]),
        "padding_side": draw.choice(["left", "right"]),
        "truncation_side": draw.choice(["left", "right"]),
        "split_special_tokens": draw.random() < 0.5,
        "image_token": draw.choice(["<image>", "cat"]),
        "errors": "replace",
        "unk_id": 0,
        "chat_template": draw.choice(["{{ messages[0].content }}", None]),
    }
    chosen = draw.sample(sorted(every), draw.randrange(5))
    return {name: every[name] for name in chosen}


def _decoder(draw, made):
    """added_tokens_decoder: what tokenizer.json has, in part, with other flags or other ids; or new tokens."""
    found = {}
    for index, token in made.get_added_tokens_decoder().items():
        if draw.random() < 0.8:
            found[str(index)] = _flags(token if draw.random() < 0.6 else _added(draw, token.content))
    for token in draw.sample(SPECIAL, draw.randrange(3)):
        found[str(made.get_vocab_size() + draw.randrange(3))] = _flags(_added(draw, token))
    return found
