"""What OpenAPI cannot say of the interface, so that no case asks for it."""

import schemathesis


@schemathesis.hook
def filter_query(context, query):
    """An exact plan takes no min_quality: a document cannot relate two parameters."""
    budget = (query or {}).get("budget")
    return not (isinstance(budget, str) and budget.startswith("exact:") and query.get("min_quality") is not None)
