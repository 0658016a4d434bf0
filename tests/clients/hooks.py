"""What OpenAPI cannot say of the interface, so that no case asks for it."""

import base64
import re

import schemathesis
from pngs import png
from schemathesis.transport.serialization import Binary


@schemathesis.hook
def filter_query(context, query):
    """An exact plan takes no min_quality: a document cannot relate two parameters."""
    budget = (query or {}).get("budget")
    return not (isinstance(budget, str) and budget.startswith("exact:") and query.get("min_quality") is not None)


@schemathesis.hook
def map_body(context, body):
    """A prompt to a model of classes names one, which no regular expression can say: spellings are compared after Unicode's
    normalisation. The document has them for examples."""
    schemas = context.operation.schema.raw_schema["components"]["schemas"]
    classes = schemas["ImagesBody"]["properties"]["prompt"].get("examples", [])
    if classes and isinstance(body, dict) and isinstance(body.get("prompt"), str) and body["prompt"] not in classes:
        return {**body, "prompt": f"{body['prompt']} a photo of a {classes[0]}"}
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    """A file is a picture of a size of the model, which no schema can say: in the place of one that stands for it is one."""
    if not isinstance(case.body, dict):
        return
    schemas = context.operation.schema.raw_schema["components"]["schemas"]
    properties = schemas["ImagesBody"]["properties"]
    base_64 = schemas["GenerateBody"]["properties"]["image"]["pattern"]
    sizes = [size for size in properties["size"]["enum"] if size not in (None, "auto")]
    sides = [case.body.get(side) for side in ("width", "height")]
    fits = lambda size: all(side is None or str(side) == part for side, part in zip(sides, size.split("x")))
    size = case.body.get("size") if case.body.get("size") in sizes else next(filter(fits, sizes), sizes[0])
    width, height = map(int, size.split("x"))
    white = png([[255] * width] * height)
    is_form = case.media_type == "multipart/form-data"
    for field in ("image", "mask"):
        value = case.body.get(field)
        if is_form and value is not None:
            case.body[field] = Binary(white)
        # What is no base 64 is to be refused.
        elif isinstance(value, str) and re.fullmatch(base_64, value):
            case.body[field] = base64.b64encode(white).decode()
    # Only JPEG is lossy; the tester takes no condition on a form with files.
    if is_form and case.body.get("output_format") not in ("jpeg", "jpg"):
        case.body.pop("output_compression", None)
