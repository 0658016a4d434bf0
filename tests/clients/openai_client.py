"""The official OpenAI client against a running server, as its users would use it. Usage: openai_client.py URL."""

import asyncio
import base64
import struct
import sys

import openai
from pngs import png

CLASS = "top"
SIZE = (8, 8)


def png_size(b64):
    data = base64.b64decode(b64)
    assert data.startswith(b"\x89PNG\r\n\x1a\n"), data[:16]
    return struct.unpack(">II", data[16:24])


def refused(kind, code, param, call):
    """Asserts that `call` raises the client's own error of this kind, with what it tells programs."""
    try:
        call()
    except kind as error:
        assert (error.code, error.param) == (code, param), (error.code, error.param, error.message)
        assert error.type == "invalid_request_error" and error.request_id, error
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")


def main(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

    [model] = client.models.list()
    assert client.models.retrieve(model.id) == model, model
    refused(openai.NotFoundError, "model_not_found", "model", lambda: client.models.retrieve("dall-e-3"))

    def draw(**fields):
        return client.images.generate(prompt=f"a photo of a {CLASS.upper()}", **fields)

    two = draw(model=model.id, n=2, quality="low", size="auto", user="someone", extra_body={"seed": 7})
    assert [png_size(image.b64_json) for image in two.data] == [SIZE, SIZE]
    assert (two.size, two.quality, two.output_format, two.background) == ("8x8", "low", "png", "opaque"), two
    assert two.usage.total_tokens == 0 and two.usage.output_tokens_details.image_tokens == 0, two.usage
    one = draw(quality="low", extra_body={"seed": 7}).data[0]
    assert one.b64_json == two.data[0].b64_json != two.data[1].b64_json

    # Who says nothing may read either field (LangChain reads `url` alone); who asks for one gets that one.
    assert one.url == f"data:image/png;base64,{one.b64_json}", one.url
    link, b64 = (
        draw(quality="low", response_format=field, extra_body={"seed": "7"}).data[0] for field in ("url", "b64_json")
    )
    assert (link.url, link.b64_json) == (one.url, None) and (b64.url, b64.b64_json) == (None, one.b64_json), (link, b64)

    raw = client.images.with_raw_response.generate(prompt=CLASS, quality="high")
    assert raw.headers["x-accordion-plan"] == "heun-18@full" and int(raw.headers["x-seed"]) >= 0, raw.headers
    assert len(raw.parse().data) == 1

    files = {
        output_format: base64.b64decode(draw(output_format=output_format).data[0].b64_json)
        for output_format in ("png", "webp", "jpeg")
    }
    assert files["webp"][8:12] == b"WEBP" and files["jpeg"].startswith(b"\xff\xd8"), files
    sizes = [
        len(draw(output_format="jpeg", output_compression=quality, extra_body={"seed": 1}).data[0].b64_json)
        for quality in (1, 100)
    ]
    assert sizes[0] < sizes[1], sizes

    stream = draw(quality="high", stream=True, partial_images=2, extra_body={"seed": 7})
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"], events
    assert [event.partial_image_index for event in events[:-1]] == [0, 1], events
    assert [png_size(event.b64_json) for event in events] == [SIZE] * 3
    assert events[-1].b64_json == draw(quality="high", extra_body={"seed": 7}).data[0].b64_json
    assert (events[-1].size, events[-1].usage.total_tokens, events[-1].quality) == ("8x8", 0, "high"), events[-1]

    def bad(code, param, **fields):
        return refused(openai.BadRequestError, code, param, lambda: draw(**fields))

    assert "b64_json, url" in bad("out_of_range", "response_format", response_format="png")
    assert "auto, 8x8" in bad("out_of_range", "size", size="1024x1024")
    assert "opaque" in bad("out_of_range", "background", background="transparent")
    assert "1 to 10" in bad("out_of_range", "n", n=11)
    assert "0 to 3" in bad("out_of_range", "partial_images", stream=True, partial_images=4)
    bad("unknown_field", "style", style="vivid")
    message = refused(
        openai.BadRequestError, "unknown_class", "prompt", lambda: client.images.generate(prompt="a dog")
    )
    assert "top, bottom" in message, message
    refused(openai.NotFoundError, "model_not_found", "model", lambda: draw(model="gpt-image-1"))

    # Edits: files as its users give them, in any of the ways that the client takes them.
    grey = png([[16 * x + y for x in range(8)] for y in range(8)])
    half = png([[255 if x < 4 else 0 for x in range(8)] for _ in range(8)])

    def edit(image=("a.png", grey), **fields):
        return client.images.edit(image=image, prompt=CLASS, **fields)

    kept = [edit(image, mask=("m.png", half), quality="low", extra_body={"seed": 7}) for image in (("a.png", grey), [("a.png", grey)])]
    assert kept[0].data[0].b64_json == kept[1].data[0].b64_json and png_size(kept[0].data[0].b64_json) == SIZE
    raw = client.images.with_raw_response.edit(image=("a.png", grey), prompt=CLASS, quality="high", input_fidelity="high")
    assert raw.headers["x-accordion-plan"] == "heun-18@full~strength=0.8", raw.headers
    assert len(edit(n=2, extra_body={"strength": 0.3}).data) == 2
    events = list(edit(quality="high", stream=True, partial_images=1, extra_body={"seed": 7}))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"], events
    assert events[-1].b64_json == edit(quality="high", extra_body={"seed": 7}).data[0].b64_json

    def bad_edit(code, param, **fields):
        return refused(openai.BadRequestError, code, param, lambda: edit(**fields))

    assert "8x8" in bad_edit("invalid_image", "image", image=("a.png", png([[0] * 9] * 8)))
    assert "intact" in bad_edit("invalid_image", "image", image=("a.png", grey[:-9]))
    assert "marks nothing" in bad_edit("invalid_image", "mask", mask=("m.png", png([[0] * 8] * 8)))
    assert "above 0" in bad_edit("out_of_range", "strength", extra_body={"strength": 0})
    bad_edit("invalid_form", None, image=[("a.png", grey), ("b.png", grey)])

    async def at_once():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as many:
            return await asyncio.gather(*(many.images.generate(prompt=CLASS, quality="low") for _ in range(8)))

    assert len({answer.data[0].b64_json for answer in asyncio.run(at_once())}) == 8
    print(f"openai {openai.__version__}: everything as its users expect")


main(sys.argv[1])
