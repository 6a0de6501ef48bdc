"""A `tokenizer.json` as flat tables, which a runtime reads without JSON, regex or Unicode library.

The bytes are those of `tokenizer.tables`: docs/tokenizer-tables.md. What cannot be written exactly
is refused by name, so a reader's ids equal those of `tokenizers`.

    read_tokenizer   the file, read by the library, as a frozen dataclass
    components       its normalizer, pre-tokenizer and decoder as steps, splits and a rule
    added_tokens     its added tokens, where one search finds them all
    patterns         a regular expression as a tree
    automata         a tree as a table of states
    code_points      sets of code points, asked of the library
    normal_forms     what NFC does, asked of the library
    vocabulary       what each token writes
    hash_tables      open addressing
    write            the sections, and the file
"""

from pl_compile.text.tables.write import tables_of as tables_of
