import asyncio

import pytest
from jinja2 import TemplateError

from penchant.errors import DataError
from penchant.runtime.serving.chat.room import Room
from penchant.runtime.serving.chat.texts import TextStream, encode


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    chat_template = None
    eos_token_id, sep_token_id = 0, None

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", "replace")

    def __call__(self, text):
        return {"input_ids": [1, *text.encode(), 0]}


def said(text, *stop):
    """The pieces as they come, the rest, and whether it stopped."""
    stream = TextStream(Bytes(), stop)
    pieces = []
    for token in text.encode():
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return pieces, stream.end(), stream.stopped


def test_a_character_of_several_tokens_is_told_when_it_is_whole():
    pieces, rest, _ = said("aü€!")
    assert pieces == ["a", "", "ü", "", "", "€", "!"]
    assert rest == ""


def test_half_a_character_at_the_end_is_told_as_such():
    stream = TextStream(Bytes())
    assert [stream.push(token) for token in b"a\xe2\x82"] == ["a", "", ""]
    assert stream.end() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("tea", "three", "two"), "one "),
        ("aab", ("ab",), "a"),
        ("a\n\nb", ("\n\n",), "a"),
        ("grün", ("ü",), "gr"),
        ("stop", ("stop",), ""),
    ],
)
def test_a_stop_text_ends_it_and_is_not_part_of_it(text, stop, expected):
    pieces, rest, stopped = said(text, *stop)
    assert stopped
    assert "".join(pieces) + rest == expected


def test_what_might_be_a_stop_text_is_held_back_until_it_is_not():
    pieces, rest, stopped = said("abcabd", "abd!")
    assert pieces == ["", "", "abc", "", "", ""]
    assert (rest, stopped) == ("abd", False)


def test_a_single_message_is_read_as_fitting_reads_a_prompt():
    messages = [{"role": "user", "content": "Hi"}]
    assert encode(Bytes(), messages, own_template=True) == (1, *b"Hi")
    several = [{"role": "system", "content": "Be brief."}, *messages]
    assert encode(Bytes(), several, own_template=True) == (1, *b"Be brief.\n\nHi")


class Templated(Bytes):
    chat_template = "any"

    def apply_chat_template(self, messages, add_generation_prompt, return_dict):
        assert add_generation_prompt
        assert not return_dict
        if messages[0]["role"] == "assistant":
            raise TemplateError("Roles must alternate.")
        return [7, len(messages)]


def test_the_tokenizers_own_template_is_used_where_it_is_asked_for():
    messages = [{"role": "user", "content": "Hi"}]
    assert encode(Templated(), messages, own_template=True) == (7, 1)
    assert encode(Templated(), messages, own_template=False) == (1, *b"Hi")
    with pytest.raises(DataError, match=r"does not allow these messages \(Roles must alternate\)"):
        encode(Templated(), [{"role": "assistant", "content": "Hi"}], own_template=True)


def test_who_wants_more_places_is_not_passed_by_those_who_want_fewer():
    order = []

    async def work():
        room = Room(4)
        await room.enter(3)

        async def visit(name, count):
            await room.enter(count)
            order.append(name)

        waiting = []
        for name, count in (("three", 3), ("one", 1), ("two", 2)):
            waiting.append(asyncio.create_task(visit(name, count)))
            await asyncio.sleep(0)
        assert order == [], "one would fit, and waits its turn"
        room.leave(3)
        await asyncio.gather(*waiting[:2])
        assert order == ["three", "one"]
        waiting[2].cancel()
        await asyncio.gather(waiting[2], return_exceptions=True)
        assert room.free == 0
        room.leave(4)
        assert room.free == 4
        await room.enter(4)

    asyncio.run(work())


def test_a_wait_that_is_called_off_lets_the_next_one_in():
    async def work():
        room = Room(2)
        await room.enter(1)
        large, small = asyncio.create_task(room.enter(2)), asyncio.create_task(room.enter(1))
        await asyncio.sleep(0)
        large.cancel()
        await asyncio.wait_for(small, 5)
        assert room.free == 0

    asyncio.run(work())
