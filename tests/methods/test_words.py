import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.methods.words import positions, read_factors, read_words, refined, replaced, weights, words_of

L = 9


def prompt(*pieces, length=L):
    """Tokens after a start token; a piece that ends with "-" goes on in the next."""
    tokens = ["", *(p.removesuffix("-") if p.endswith("-") else p + " " for p in pieces)]
    tokens += [""] * (length - len(tokens))
    return prompt_of(torch.zeros(1, length, 4), " ".join(pieces).replace("- ", ""), "model", tuple(tokens))


SOURCE = prompt("a", "red", "sq-", "uare", "here")


def test_words_are_put_together_from_their_tokens():
    assert words_of(SOURCE) == [("a", [1]), ("red", [2]), ("square", [3, 4]), ("here", [5])]
    assert words_of(prompt("cut-", "off-")) == [("cutoff", [1, 2])]
    assert positions(SOURCE, " Square") == [3, 4]
    assert positions(prompt("a", "b", "a"), "a") == [1, 3]


def test_words_of_other_letters_are_put_together_from_pieces_of_their_characters():
    """The pieces of a byte-level tokenizer end anywhere: here within the é and within the 日."""
    bytes_of = [b"caf", b"\xc3", b"\xa9 ", b"\xe6\x97", b"\xa5 ", b"naive "]
    tokens = ("", *(piece.decode("utf-8", "surrogateescape") for piece in bytes_of), "", "")
    cafe = prompt_of(torch.zeros(1, L, 4), "café 日 naive", "model", tokens)
    assert words_of(cafe) == [("café", [1, 2, 3]), ("日", [4, 5]), ("naive", [6])]
    assert positions(cafe, "CAFÉ") == positions(cafe, "cafe\u0301") == [1, 2, 3]
    with pytest.raises(ValueError, match="its words are café, 日, naive"):
        positions(cafe, "cafe")


def test_a_word_that_the_tokenizer_cut_in_several_is_found_where_they_stand_in_a_row():
    cut = prompt("a", "t", "'", "shirt", "of", "2", "0", "t")
    assert positions(cut, "T'shirt") == [2, 3, 4]
    assert positions(cut, "20") == [6, 7]
    assert positions(cut, "t") == [2, 8]
    assert positions(cut, "t ' shirt of") == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="does not have the word 'shirt2'"):
        positions(cut, "shirt2")


def test_words_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="does not have the word 'circle': its words are a, red, square, here"):
        positions(SOURCE, "circle")
    with pytest.raises(ValueError, match="the prompt 'x' has no words"):
        positions(prompt_of(torch.zeros(1, L, 4), "x", "model"), "x")


def pairs(token_map):
    """{target position: source position} of whole columns."""
    i, j = token_map.taken.nonzero().T.tolist()
    return dict(zip(j, i))


def test_refined_words_keep_their_maps_and_new_ones_the_edits():
    target = prompt("a", "big", "blue", "sq-", "uare", "here")
    got = refined(SOURCE, target)
    # The end token, at 6 in the source and 7 here, says what the whole prompt says: its map belongs to its like.
    assert pairs(got) == {0: 0, 1: 1, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7}
    assert got.kept.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert set(got.taken.unique().tolist()) == {0, 1}


def test_a_shorter_prompt_takes_the_end_of_the_longer():
    longer, shorter = (prompt(*text.split(), length=6) for text in ("a cat sits", "a cat"))
    assert pairs(refined(longer, shorter)) == {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 5}
    assert pairs(refined(shorter, longer)) == {0: 0, 1: 1, 2: 2, 4: 3, 5: 4}
    assert refined(shorter, longer).kept.tolist() == [0, 0, 0, 1, 0, 0]


def test_a_prompt_without_padding_ends_at_its_last_place():
    full, short = prompt("a", "b", "c", length=5), prompt("a", length=5)
    assert pairs(refined(full, short)) == {0: 0, 1: 1, 2: 4, 3: 4, 4: 4}
    assert pairs(refined(short, full)) == {0: 0, 1: 1, 4: 2}


def test_the_same_prompt_takes_everything():
    for token_map in (refined(SOURCE, SOURCE), replaced(SOURCE, SOURCE)):
        assert torch.equal(token_map.taken, torch.eye(L))
        assert not token_map.kept.any()


def test_replaced_words_share_the_map_of_the_old_word():
    got = replaced(SOURCE, prompt("a", "blue", "circle", "here"))
    assert not got.kept.any()
    want = torch.zeros(L, L)
    for i, j in {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7}.items():
        want[i, j] = 1
    want[8, 8] = 1  # one token of padding more than the source has
    assert torch.equal(got.taken, want)
    longer = replaced(SOURCE, prompt("a", "r-", "e-", "d", "square", "here"))
    assert longer.taken[2].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0])
    assert longer.taken[3:5, 5].tolist() == [1, 1]


def test_replacing_wants_as_many_words():
    with pytest.raises(ValueError, match=r"has 4 words and 'a red square' 3: .* choose refine"):
        replaced(SOURCE, prompt("a", "red", "square"))
    with pytest.raises(ValueError, match="the prompts have 9 and 12 tokens"):
        refined(SOURCE, prompt("a", length=12))


def test_weights_are_1_but_for_the_named_words():
    got = weights(SOURCE, (("square", 2.0), ("red", 0.5)))
    assert got.tolist() == [1, 1, 0.5, 2, 2, 1, 1, 1, 1]


def test_words_and_factors_are_read_from_text():
    assert read_words(" red, square circle,") == ("red", "square", "circle")
    assert read_factors("square=2, red = 0.5") == (("square", 2.0), ("red", 0.5))
    assert read_words("") == read_factors(" ") == ()
    for text in ("square", "square=two"):
        with pytest.raises(ValueError, match=f"want words with factors, as in 'square=2, red=0.5', got '{text}'"):
            read_factors(text)
