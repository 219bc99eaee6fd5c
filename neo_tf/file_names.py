"""Names of files that more than one kind of folder holds. They are the names that transformers uses."""

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
VOCAB_TEXT_FILE = "vocab.txt"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_TEMPLATES_FOLDER = "additional_chat_templates"

# Files of tokenizers that are kept on every way, although neo-tf itself cannot read them, or reads them for BERT's
# classes alone.
UNREAD_TOKENIZER_FILES = (
    VOCAB_TEXT_FILE,
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
)
# What belongs to a tokenizer. The templates in CHAT_TEMPLATES_FOLDER do, too.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    VOCAB_FILE,
    MERGES_FILE,
    CHAT_TEMPLATE_FILE,
    *UNREAD_TOKENIZER_FILES,
)
