"""The rule that every contract of pdframe obeys: a class is abstract or final."""

from __future__ import annotations

import abc
import inspect


class Interface(abc.ABC):  # noqa: B024 (it is the rule, not a contract)
    """Parent of every contract. A subclass either declares (abstract) or runs (final).

    A class whose methods are all implemented may not be subclassed: to change what it does, wrap it or
    give it another part. So the code that runs for a class is the code written in that class.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__[1:]:
            if parent is Interface or not issubclass(parent, Interface):
                continue
            # ABCMeta fills `__abstractmethods__` after this hook has run for `cls`, but the parents have theirs.
            if not inspect.isabstract(parent):
                raise TypeError(f"{parent.__name__} is final: wrap it in {cls.__name__}, do not subclass it")
