"""The tokenizers of known families of decoders become tables, or are refused for a known reason."""

import pytest
from known_families import REFUSED, TAKEN
from test_ids_of_tables import check_ids
from tiny_tokenizers import hard_texts

from pl_compile.errors import TablesError
from pl_compile.text.tables import tables_of

_PARTS = ("[INST]", "<|user|>", "▁<PRE>", "  ", "        ", "\n\n", " a", "<s>", "</s>", "  \n")


@pytest.mark.parametrize("family", TAKEN)
def test_the_ids_of_a_family_are_those_of_the_library(family: str) -> None:
    check_ids(TAKEN[family](), ["", " ", *hard_texts(31, 90, _PARTS)])


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_no_table_can_say_is_refused_by_what_it_has(family: str) -> None:
    make, found = REFUSED[family]

    with pytest.raises(TablesError) as error:
        tables_of(make())

    assert error.value.found == found
