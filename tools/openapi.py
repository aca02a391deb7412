"""Write the OpenAPI 3.1 document of the gateway into docs/openapi/gateway.json: ``python tools/openapi.py``.

Bodies come from the structs that modelkeep itself reads and writes, error codes from the error tree, so they cannot say
anything else; a test holds the file to them, and schemathesis holds the gateway to the file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

import modelkeep
from modelkeep import errors
from modelkeep.http import problem
from modelkeep.serving import explain, oip

FILE = Path(__file__).parents[1] / "docs" / "openapi" / "gateway.json"
NAME = {"type": "string", "examples": ["iris"], "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
VERSION = {"type": "string", "examples": ["1"], "pattern": "^([1-9][0-9]{0,8}|[a-z][a-z0-9._-]{0,63})$"}
RECORD = {"description": "Where the durable audit record is: instance/index.", "schema": {"type": "string"}, "required": True}
AGAIN = {"description": "Seconds to wait before asking again.", "schema": {"type": "integer", "minimum": 1}, "required": True}
WHO = {"description": "How to present a credential.", "schema": {"type": "string"}, "required": True}
PUZZLE = {"description": "What is to be solved before this is answered (docs/formats/puzzle.md).", "schema": {"type": "string"}}
SOLUTION = {
    "name": "modelkeep-solution",
    "in": "header",
    "description": "Challenge and nonce that solve a puzzle which was set before (docs/formats/puzzle.md).",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{80}$"},
}
EXAMPLE = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 6], "data": [0.5, -1, 0.25, 2, 0, -0.125]}]}
ALWAYS = (400, 405, 408, 413, 417, 431, 501, 503, 505)
"""What any request may be answered with: what broke the protocol, or came while nothing can be answered."""
WITH_CREDENTIAL = (401, 403, 404, 423, 429)


def document() -> dict[str, Any]:
    """The document, whole."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modelkeep gateway",
            "version": modelkeep.__version__,
            "summary": "The Open Inference Protocol v2 (REST, JSON), guarded.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": {**_server_paths(), **_model_paths()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a session token."}
            },
            "schemas": _schemas(),
            "responses": {f"Problem{status}": _problem(status) for status in sorted(problem.TITLE)},
        },
    }


def text() -> str:
    """The text of the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _schemas() -> dict[str, Any]:
    kinds = {
        "InferRequest": oip.InferRequest,
        "InferResponse": _json_response(),
        "ModelMetadata": oip._Meta,
        "ExplainResponse": explain.ExplainResponse,
        "Problem": problem._Problem,
    }
    found, parts = msgspec.json.schema_components(list(kinds.values()), ref_template="#/components/schemas/{name}")
    names = {one["$ref"].rpartition("/")[2]: name for one, name in zip(found, kinds, strict=True)}
    names |= {"_OutTensor": "OutputTensor", "_Tensor": "Attributions", "_Facts": "Explained"}
    said = json.dumps(parts)
    for old, new in names.items():
        said = said.replace(f'"#/components/schemas/{old}"', f'"#/components/schemas/{new}"')
    schemas = {names.get(name, name): schema for name, schema in json.loads(said).items()}
    schemas["Tensor"]["properties"]["data"] = {
        "type": "array"
    }  # numbers, truth values or texts, flat or nested as the shape says
    schemas["OutputTensor"]["properties"]["data"] = {"type": "array"}
    codes = sorted(
        {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")} | {"too-slow"}
    )
    schemas["Problem"]["properties"]["code"] = {"type": "string", "enum": codes}
    for schema in schemas.values():
        schema.pop("title", None)
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].replace("``", "`").split())
    return dict(sorted(schemas.items()))


def _json_response() -> type[msgspec.Struct]:
    """The struct of an answer whose tensors are all JSON; binary tensors (Triton's extension) are not described here."""
    fields = []
    for field in msgspec.structs.fields(oip._Response):
        kind = list[oip._OutTensor] if field.name == "outputs" else field.type
        fields.append((field.name, kind) if field.required else (field.name, kind, field.default))
    return msgspec.defstruct("InferResponse", fields, kw_only=True)


def _problem(status: int) -> dict[str, Any]:
    said = {"www-authenticate": WHO}, {"modelkeep-puzzle": PUZZLE}, {"retry-after": AGAIN}, {"retry-after": AGAIN}
    headers = dict(zip((401, 403, 429, 503), said, strict=True)).get(status, {})
    schema = {"$ref": "#/components/schemas/Problem"}
    shown = {"description": problem.TITLE[status], "content": {"application/problem+json": {"schema": schema}}}
    return {**shown, "headers": headers} if headers else shown


def _answer(words: str, content: str, schema: dict[str, Any], *refusals: int, recorded: bool = False) -> dict[str, Any]:
    good: dict[str, Any] = {"description": words, "content": {content: {"schema": schema}}}
    if recorded:
        good["headers"] = {"modelkeep-record": RECORD}
    statuses = sorted({*ALWAYS, *refusals})
    return {"200": good, **{str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}}


def _json(words: str, name: str, *refusals: int, recorded: bool = False) -> dict[str, Any]:
    return _answer(words, "application/json", {"$ref": f"#/components/schemas/{name}"}, *refusals, recorded=recorded)


def _flags(*names: str) -> dict[str, Any]:
    """The schema of an object of exactly these truth values."""
    return {"type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": list(names)}


def _server_paths() -> dict[str, Any]:
    about = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "version", "extensions"],
    }
    anyone: dict[str, Any] = {"security": []}
    say = {
        "/v2": ("metadata", "Name and version of the server.", "application/json", about),
        "/v2/health/live": ("live", "The process runs.", "application/json", _flags("live")),
        "/v2/health/ready": ("ready", "Predictions would be answered.", "application/json", _flags("ready")),
        "/metrics": ("metrics", "Prometheus text.", "text/plain; version=0.0.4; charset=utf-8", {"type": "string"}),
    }
    return {
        path: {"get": {"operationId": name, "summary": words, **anyone, "responses": _answer(words, content, schema)}}
        for path, (name, words, content, schema) in say.items()
    }


def _model_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for base, suffix in (("/v2/models/{name}", ""), ("/v2/models/{name}/versions/{version}", "Version")):
        parameters = [{"name": "name", "in": "path", "required": True, "schema": NAME}]
        if suffix:
            parameters.append({"name": "version", "in": "path", "required": True, "schema": VERSION})
        ready = {**_flags("ready"), "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}}}
        paths[base] = {
            "parameters": parameters,
            "get": {
                "operationId": f"modelMetadata{suffix}",
                "summary": "Inputs, served outputs and served versions of a model.",
                "responses": _json("What the model takes and gives.", "ModelMetadata", *WITH_CREDENTIAL),
            },
        }
        paths[f"{base}/ready"] = {
            "parameters": parameters,
            "get": {
                "operationId": f"modelReady{suffix}",
                "summary": "Whether a prediction would be answered.",
                "responses": _answer("It would.", "application/json", ready, *WITH_CREDENTIAL),
            },
        }
        for verb, words, answer in (
            ("infer", "Ask the model.", "InferResponse"),
            ("explain", "Ask why the model answers one row as it does.", "ExplainResponse"),
        ):
            paths[f"{base}/{verb}"] = {
                "parameters": parameters,
                "post": {
                    "operationId": f"{verb}{suffix}",
                    "summary": words,
                    "parameters": [SOLUTION],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {"$ref": "#/components/schemas/InferRequest"},
                                "examples": {"one row": {"value": EXAMPLE}},
                            }
                        },
                    },
                    "responses": _json("The answer, recorded.", answer, *WITH_CREDENTIAL, recorded=True),
                },
            }
    return paths


def main() -> int:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), "utf-8")
    sys.stdout.write(f"{FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
