"""What OpenAPI cannot say of the interface, so that no case asks for it."""

import schemathesis

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
