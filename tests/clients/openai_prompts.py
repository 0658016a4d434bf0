"""The official OpenAI client against a server whose model draws texts. Usage: openai_prompts.py URL."""

import base64
import struct
import sys

import openai
from pngs import png as grey_png

PROMPT = "a photo of a red bicycle"


def png(image):
    data = base64.b64decode(image.b64_json)
    assert data.startswith(b"\x89PNG\r\n\x1a\n"), data[:16]
    return struct.unpack(">II", data[16:24]), data


def refused(code, param, call):
    try:
        call()
    except openai.BadRequestError as error:
        assert (error.code, error.param) == (code, param), (error.code, error.param, error.message)
        return
    raise AssertionError("it was not refused")


def main(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

    def draw(prompt=PROMPT, more=None, **fields):
        return client.images.generate(prompt=prompt, extra_body={"seed": 7, **(more or {})}, **fields)

    two = draw(n=2, quality="low", size="auto")
    assert [png(image)[0] for image in two.data] == [(128, 128)] * 2 and two.size == "128x128", two.size
    wide = draw(quality="low", size="160x64")
    assert png(wide.data[0])[0] == (160, 64) and wide.size == "160x64", wide.size

    # Each of these changes the image, and a repetition does not.
    different = [
        draw(quality="low"),
        draw("a cat", quality="low"),
        draw(quality="low", more={"negative_prompt": "blurry"}),
        draw(quality="low", more={"guidance_scale": 3}),
        draw(more={"num_inference_steps": 3}),
    ]
    assert len({png(answer.data[0])[1] for answer in different}) == len(different)
    assert png(draw(quality="low").data[0])[1] == png(two.data[0])[1]
    raw = client.images.with_raw_response.generate(prompt=PROMPT, extra_body={"num_inference_steps": 3})
    assert raw.headers["x-accordion-plan"] == "dpmpp2m-3@full", raw.headers

    picture = grey_png([[x + y for x in range(160)] for y in range(64)])
    edited = [
        client.images.edit(image=("a.png", picture), prompt=prompt, quality="low", extra_body={"seed": 7, "strength": 0.5})
        for prompt in (PROMPT, "a cat")
    ]
    assert edited[0].size == "160x64" and png(edited[0].data[0])[0] == (160, 64)
    assert edited[0].data[0].b64_json != edited[1].data[0].b64_json

    refused("missing_prompt", "prompt", lambda: draw(""))
    refused("out_of_range", "size", lambda: draw(size="64x160"))
    refused("out_of_range", "guidance", lambda: draw(more={"guidance_scale": 21}))
    refused("out_of_range", "num_inference_steps", lambda: draw(more={"num_inference_steps": 0}))
    print("prompts, negative prompts, guidance, steps and sizes reach the model")


if __name__ == "__main__":
    main(*sys.argv[1:])
