"""A wrong setting, told in the words of the file: where, what came, what was expected, the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Mistake:
    """One mistake: the path of keys to it, and the sentence about it."""

    place: tuple[str | int, ...]
    sentence: str

    def __str__(self) -> str:
        place = ".".join(str(key) for key in self.place)
        return f"{place}: {self.sentence}" if place else self.sentence


class ConfigError(ValueError):
    """Settings that cannot be used. One line for each mistake, each with its source (a file, `--set`)."""

    def __init__(self, mistakes: Iterable[Mistake] | str, source: str | Mapping[Mistake, str] = "") -> None:
        self.mistakes = (Mistake((), mistakes),) if isinstance(mistakes, str) else tuple(mistakes)
        sources = source if isinstance(source, Mapping) else dict.fromkeys(self.mistakes, source)
        super().__init__("\n".join(f"{sources[m]}: {m}" if sources[m] else str(m) for m in self.mistakes))


@contextmanager
def as_mistake(place: str) -> Iterator[None]:
    """What a part finds wrong only when it is built or opens its files, as a ConfigError at `place`."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        words = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
        raise ConfigError([Mistake((place,), words)]) from error


def nested(
    errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None = None, more_keys: Sequence[str] = ()
) -> PydanticCustomError:
    """Mistakes that another model found, to be raised inside a validator; `explain` unfolds them again.

    `more_keys` are valid beside the fields of `model`.
    """
    return PydanticCustomError("nested", "wrong settings", {"errors": errors, "model": model, "more_keys": more_keys})


def explain(error: ValidationError, model: type[BaseModel]) -> list[Mistake]:
    """What pydantic found wrong with settings for `model`, in plain words, one Mistake for each place."""
    reasons: dict[tuple[str | int, ...], list[str]] = {}
    received: dict[tuple[str | int, ...], str] = {}
    all_found = list(_unfold(error.errors(include_url=False), model))
    for place, found, owner, more_keys in all_found:
        # Of `"cover" | [rows, columns]`, a wrong number inside the list says all there is to say.
        if found["type"] == "literal_error" and any(_is_inside(other, place) for other, *_ in all_found):
            continue
        reasons.setdefault(place, []).append(_reason(found, owner, more_keys))
        if found["type"] not in ("extra_forbidden", "missing", "value_error"):
            received[place] = f", got {found['input']!r}"
    # A union reports each of its branches: one sentence for one place.
    return [
        Mistake(place, " or ".join(dict.fromkeys(parts)) + received.get(place, "")) for place, parts in reasons.items()
    ]


def _is_inside(place: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _unfold(
    errors: Iterable[Mapping[str, Any]],
    model: type[BaseModel] | None,
    prefix: tuple[str | int, ...] = (),
    more_keys: Sequence[str] = (),
) -> Iterable[tuple[tuple[str | int, ...], Mapping[str, Any], type[BaseModel] | None, Sequence[str]]]:
    for error in errors:
        place, owner = _place(model, error["loc"])
        if error["type"] == "nested":
            inner = error["ctx"]
            yield from _unfold(inner["errors"], inner["model"], prefix + place, inner["more_keys"])
        else:
            yield prefix + place, error, owner, more_keys if owner is model else ()


def _place(
    model: type[BaseModel] | None, location: Sequence[str | int]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """The keys that a reader wrote, without the union branches that pydantic adds, and the model they lie in."""
    place: list[str | int] = []
    owner, inside = model, model
    for key in location:
        if isinstance(key, int):
            place.append(key)
        elif inside is not None or not place:
            place.append(key)
            owner = inside
            inside = _model_of(inside, key)
    return tuple(place), owner


def _model_of(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key) if model is not None else None
    return _model_in(field.annotation) if field is not None else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _reason(error: Mapping[str, Any], owner: type[BaseModel] | None, more_keys: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key; " + _suggestion(
            str(error["loc"][-1]), [*more_keys, *(owner.model_fields if owner else ())]
        )
    if error["type"] == "missing":
        return "required, but missing"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"].startswith("path_"):
        return "should be the path of a file or folder"
    words = error["msg"].replace("Input should", "should").replace("tuple", "list").replace("dictionary", "table")
    return words[0].lower() + words[1:]


def _suggestion(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"known keys: {', '.join(known)}" if known else "no keys are known here"
