"""Text for a run: read, split by document into four parts that never mix, cut into windows of tokens."""

from tritpress.text.documents import FIELD, SUFFIXES, Document
from tritpress.text.duplicates import drop_near_duplicates
from tritpress.text.splits import SPLITS, Splits, builtin_splits, load_splits, split_of
from tritpress.text.windows import TrainingWindows, check_known, token_windows, tokenize, windows_sha256

__all__ = [
    "FIELD",
    "SPLITS",
    "SUFFIXES",
    "Document",
    "Splits",
    "TrainingWindows",
    "builtin_splits",
    "check_known",
    "drop_near_duplicates",
    "load_splits",
    "split_of",
    "token_windows",
    "tokenize",
    "windows_sha256",
]
