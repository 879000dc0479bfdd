"""A table of a TOML that names a plugin: `[operator] name = "cone_beam"` and that plugin's settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pdframe import registry
from pdframe.hooks import BackendMissing, Config, Entry
from pdframe.mistakes import nested

#: Kinds whose schema is being written, from the outside in.
_unfolding: ContextVar[frozenset[str]] = ContextVar("unfolding", default=frozenset())


@dataclass(frozen=True)
class Part:
    """A plugin chosen by name, with its checked settings. Solvers may carry a label and a prior of their own."""

    kind: str
    name: str
    settings: Config
    label: str = ""
    prior: Part | None = None

    @property
    def entry(self) -> Entry:
        """What the registry knows of it."""
        return registry.find(self.kind, self.name)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what `build` asks for: grid, operator, prior..."""
        return registry.needs(type(self.settings))

    def build(self, **context: Any) -> Any:
        """The object itself; what its Config asks for is taken from `context`, the rest of which is left aside."""
        return registry.build_from(self.kind, self.name, self.settings, context)

    def table(self, mode: str = "json") -> dict[str, Any]:
        """The table of a TOML that gives this part, every setting in it; mode "python" keeps paths as paths."""
        return _table(self, mode, exclude_none=True)

    def with_prior(self, prior: Part | None) -> Part:
        """Itself, with `prior` in case it asks for one and has none of its own."""
        return replace(self, prior=prior) if self.prior is None and "prior" in self.needs else self


@dataclass(frozen=True)
class PartOf:
    """Annotation that lets pydantic read a Part of one kind: `Annotated[Part, PartOf("prior")]`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(_write, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if self.kind in _unfolding.get():  # a solver that takes a solver: its table is checked when it is read
            return {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        token = _unfolding.set(_unfolding.get() | {self.kind})
        try:
            return self._choices(handler)
        finally:
            _unfolding.reset(token)

    def _choices(self, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = []
        for entry in registry.entries(self.kind):
            try:
                config_class = registry.load_config_class(entry)
            except (BackendMissing, registry.RegistryError):  # `pdframe plugins` and `doctor` tell of it
                continue
            own = handler.resolve_ref_schema(handler(config_class.__pydantic_core_schema__))
            choices.append(self._choice(entry, own, handler))
        return {"oneOf": choices} if choices else {"not": {}, "description": f"no plugin offers any {self.kind}"}

    def _choice(self, entry: Entry, own: Mapping[str, Any], handler: GetJsonSchemaHandler) -> dict[str, Any]:
        extra: dict[str, Any] = {"name": {"const": entry.name}}
        if self.kind == "solver":
            extra |= {
                "label": {"type": "string", "description": "row name in tables and pictures"},
                "prior": PartOf("prior").__get_pydantic_json_schema__({}, handler),
            }
        required = ["name", *own.get("required", [])]
        properties = {**extra, **own.get("properties", {})}
        return {
            **own,
            "title": entry.name,
            "description": entry.summary,
            "properties": properties,
            "required": required,
        }

    def read(self, raw: Any) -> Part:
        """A Part from a table; every mistake in it under its own key."""
        if isinstance(raw, Part) and raw.kind == self.kind:
            return raw
        if not isinstance(raw, Mapping):
            raise ValueError(f'should be a table such as {{name = "..."}}, got {raw!r}')
        table = dict(raw)
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise _mistake("name", "required, but missing" if name is None else f"should be text, got {name!r}")
        try:
            config_class = registry.load_config_class(registry.find(self.kind, name))
        except registry.RegistryError as error:
            raise _mistake("name", str(error)) from None
        carried = {key: table.pop(key) for key in ("label", "prior") if self.kind == "solver" and key in table}
        errors: list[Any] = []
        label, prior = _carried(carried, name, errors)
        if prior is not None and "prior" not in registry.needs(config_class):
            errors.append({"type": "value_error", "loc": ("prior",), "msg": f"solver {name!r} uses no prior"})
        try:
            settings = config_class.model_validate(table)
        except ValidationError as error:
            errors += error.errors(include_url=False)
        if errors:
            raise nested(errors, config_class, ("name", "label", "prior") if self.kind == "solver" else ("name",))
        return Part(self.kind, str(name), settings, label, prior)


def _carried(table: Mapping[str, Any], name: str, errors: list[Any]) -> tuple[str, Part | None]:
    """Label and prior of a solver's table; what is wrong with them goes to `errors`."""
    label = table.get("label", name)
    if not isinstance(label, str) or not label.strip():
        errors.append({"type": "value_error", "loc": ("label",), "msg": f"should be text, got {label!r}"})
    try:
        return str(label), PartOf("prior").read(table["prior"]) if "prior" in table else None
    except PydanticCustomError as error:
        errors.append({"type": error.type, "loc": ("prior",), "ctx": error.context, "msg": ""})
    except ValueError as error:
        errors.append({"type": "value_error", "loc": ("prior",), "msg": str(error)})
    return str(label), None


def _mistake(key: str, sentence: str) -> PydanticCustomError:
    return nested([{"type": "value_error", "loc": (key,), "msg": sentence}])


def _write(part: Part, info: Any) -> dict[str, Any]:
    return _table(part, info.mode, info.exclude_none)


def _table(part: Part, mode: str, exclude_none: bool) -> dict[str, Any]:
    table: dict[str, Any] = {"name": part.name}
    if part.kind == "solver":
        table["label"] = part.label
        if part.prior is not None:
            table["prior"] = _table(part.prior, mode, exclude_none)
    return table | part.settings.model_dump(mode=mode, exclude_none=exclude_none)
