"""Inputs are built from what a model says of itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from suture.errors import SutureError
from suture.verification import feeds
from suture.verification.feeds import Vocabulary


def model(main: str = "input_ids", forward=lambda input_ids: None, **config: object) -> SimpleNamespace:
    return SimpleNamespace(main_input_name=main, forward=forward, config=SimpleNamespace(**config))


IDS = np.array([5, 6, 7])


def test_text_goes_in_as_ids_with_a_mask():
    (feed,) = feeds.feeds(model(), [IDS], [])
    assert {k: v.tolist() for k, v in feed.arguments.items()} == {
        "input_ids": [[5, 6, 7]],
        "attention_mask": [[1, 1, 1]],
    }


def test_a_decoder_gets_the_same_ids_after_its_start_token():
    (feed,) = feeds.feeds(model(is_encoder_decoder=True, decoder_start_token_id=2), [IDS], [])
    assert feed.arguments["decoder_input_ids"].tolist() == [[2, 5, 6, 7]]


def test_new_tokens_are_marked():
    assert [f.new for f in feeds.feeds(model(), [IDS], [IDS, IDS])] == [False, True, True]


@pytest.mark.parametrize(
    ("main", "config", "shape"),
    [
        ("pixel_values", {"image_size": 8}, (8, 3, 8, 8)),
        ("pixel_values", {"image_size": (8, 4), "num_channels": 1}, (8, 1, 8, 4)),
        ("pixel_values", {"vision_config": SimpleNamespace(image_size=6)}, (8, 3, 6, 6)),
        ("pixel_values", {"image_size": 8, "num_frames": 4}, (8, 4, 3, 8, 8)),
        ("input_features", {"num_mel_bins": 5, "max_source_positions": 7}, (1, 5, 14)),
        ("input_values", {}, (1, 16_000)),
    ],
)
def test_signals_have_the_size_of_the_config(main, config, shape):
    (feed,) = feeds.feeds(model(main, lambda x: None, **config), [], [])
    (again,) = feeds.feeds(model(main, lambda x: None, **config), [], [])
    assert feed.arguments[main].shape == shape
    assert np.array_equal(feed.arguments[main], again.arguments[main])


def test_speech_to_text_gets_sound_and_text():
    whisper = model("input_features", is_encoder_decoder=True, num_mel_bins=5, max_source_positions=7)
    (feed,) = feeds.feeds(whisper, [IDS], [])
    assert set(feed.arguments) == {"input_features", "decoder_input_ids"}


def test_a_model_of_pictures_and_text_is_fed_text_and_that_is_told():
    both = model("pixel_values", lambda input_ids, pixel_values: None)
    (feed,) = feeds.feeds(both, [IDS], [])
    assert "pixel_values" not in feed.arguments
    assert feeds.leaves_out_signals(both)
    assert not feeds.leaves_out_signals(model())


def test_what_cannot_be_fed_is_an_error():
    with pytest.raises(SutureError, match="fed molecules"):
        feeds.feeds(model("molecules", lambda molecules: None), [IDS], [])


class TestTokens:
    def test_random_ids_are_the_same_every_time_and_hold_no_markers(self):
        vocabulary = Vocabulary(50, frozenset(range(10)))
        one, again = (feeds.token_rows(None, ["a", "b"], vocabulary, 20) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
        assert not np.array_equal(one[0], one[1])
        assert len(one[0]) == 20
        assert min(map(min, one)) >= 10

    def test_a_tokenizer_is_cut_to_length_and_to_the_vocabulary(self):
        (ids,) = feeds.token_rows(lambda p: {"input_ids": [1, 99, 2, 3, 4]}, ["a"], Vocabulary(50, frozenset({2})), 4)
        assert ids.tolist() == [1, 3]

    def test_prompts_without_tokens_are_an_error(self):
        with pytest.raises(SutureError, match="none of the prompts"):
            feeds.token_rows(lambda p: {"input_ids": []}, ["a"], Vocabulary(50, frozenset()), 4)

    def test_every_new_token_is_in_a_prompt(self):
        vocabulary = Vocabulary(100, frozenset(), tuple(range(60, 100)))
        rows = feeds.new_token_rows(IDS, vocabulary, 64)
        assert all(r[:3].tolist() == [5, 6, 7] for r in rows)
        assert sorted(i for r in rows for i in r[3:]) == list(range(60, 100))

    def test_of_thousands_a_few_are_taken_with_both_ends(self):
        rows = feeds.new_token_rows(IDS, Vocabulary(10_000, frozenset(), tuple(range(5000, 10_000))), 64)
        found = [i for r in rows for i in r[3:]]
        assert len(found) == feeds.NEW_AT_MOST
        assert {5000, 9999} <= set(found)

    def test_ids_outside_the_table_are_left_out(self):
        assert feeds.new_token_rows(IDS, Vocabulary(10, frozenset(), (10, 11)), 64) == []

    def test_markers_are_found_at_every_level(self):
        config = {"image_token_id": 7, "eos_token_id": 2, "text_config": {"boi_token_index": 9}, "video_token_id": None}
        assert feeds.marker_ids(config) == {7, 9}
