"""Lists and rules that people write, beside the model: one file, versioned by its content.

    version = "7"

    [[list]]
    name = "stolen cards"
    action = "deny"                    # deny, allow or watch
    field = "customer_id"              # or one of the other FIELDS
    values = ["tok_c_51", "tok_c_77"]  # or values_file, one a line; hashed = true: their keys
    reason = "reported stolen"

    [[rule]]
    name = "many large payments abroad"
    decision = "review"                # or decline
    reason = "three payments within the hour, 500 or more, far away"
    when = [
      { feature = "customer_count_1h", at_least = 3 },
      { feature = "amount", at_least = 500 },
      { field = "country", none_of = ["DE", "AT"] },
    ]

What each of them does to a decision: `flagger.overrules`. All conditions of a rule must hold; a
feature without a value (NaN) holds in none.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flagger.errors import ConfigurationError
from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES

__all__ = [
    "FIELDS",
    "MAX_VALUES",
    "Condition",
    "EntityList",
    "ListedRule",
    "Rulebook",
    "Stamp",
    "load_rulebook",
]

FIELDS = ("customer_id", "terminal_id", *CATEGORY_FIELDS)
"""What lists and conditions may look at, beside features."""
MAX_VALUES = 1_000_000
"""Most values of one list, 8 bytes each in memory."""
MAX_ENTRIES = 1_000
"""Most lists and rules together: each is looked up for every batch, some 10 µs."""
_KEY = re.compile(r"^[0-9a-f]{16}$")
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[^\\n\\r\\t]+$")]
_Reason = Annotated[str, msgspec.Meta(max_length=200, pattern="^[^\\n\\r\\t]*$")]


Stamp = tuple[int, int, int]


class EntityList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values that are treated alike.

    Attributes:
        name: Unique among lists and rules.
        action: `deny` declines; `allow` approves what would be flagged, unless it is denied too;
            `watch` sends to a person what would be approved.
        field: One of FIELDS.
        values: Compared by XXH64 of their UTF-8, as all ids are here.
        values_file: The same one a line, beside `values`; a relative path starts at the file's
            folder.
        hashed: The values are keys already, 16 hex digits (`flagger rules key`): the file then
            names no customer.
        reason: What the analyst reads.
    """

    name: _Name
    action: Literal["deny", "allow", "watch"]
    field: str
    values: list[str] = []
    values_file: str | None = None
    hashed: bool = False
    reason: _Reason = ""


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on a feature or on a field.

    Attributes:
        feature: Name in the catalogue; with `at_least` or `below` or both.
        at_least: Smallest value that holds.
        below: First value that does not hold any more.
        field: One of FIELDS; with `any_of` or `none_of`.
        any_of: Holds for these values; never where the field is absent.
        none_of: Holds for all others, and where the field is absent.
    """

    feature: str | None = None
    at_least: float | None = None
    below: float | None = None
    field: str | None = None
    any_of: list[str] | None = None
    none_of: list[str] | None = None

    def problem(self) -> str:
        """Return what is wrong with it, "" if nothing."""
        if (self.feature is None) == (self.field is None):
            return "name either a feature or a field"
        bounds = self.at_least is not None or self.below is not None
        values = [v for v in (self.any_of, self.none_of) if v is not None]
        if self.feature is not None:
            if self.feature not in FEATURE_NAMES:
                return f"no feature {self.feature}; there are {', '.join(FEATURE_NAMES)}"
            if values or not bounds:
                return f"feature {self.feature} needs at_least or below, and nothing else"
            return ""
        if self.field not in FIELDS:
            return f"no field {self.field}; there are {', '.join(FIELDS)}"
        if bounds or len(values) != 1 or not all(values[0]) or not values[0]:
            return f"field {self.field} needs values in any_of or in none_of, and nothing else"
        return ""


class ListedRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule; it can make a decision stricter, never milder.

    Attributes:
        name: Unique among lists and rules.
        decision: `review` or `decline`.
        when: Conditions, all of which must hold.
        reason: What the analyst reads.
    """

    name: _Name
    decision: Literal["review", "decline"]
    when: Annotated[list[Condition], msgspec.Meta(min_length=1, max_length=32)]
    reason: _Reason = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    lists: list[EntityList] = msgspec.field(name="list", default_factory=list)
    rules: list[ListedRule] = msgspec.field(name="rule", default_factory=list)


class Rulebook(msgspec.Struct, frozen=True):
    """Lists and rules as they stand in a file, checked.

    Attributes:
        version: The file's own word and six digits of its content's hash: unambiguous also where
            somebody forgot to change the word.
        lists: With their values read.
        rules: All of them.
        stamps: What was read, the file itself and the lists' files, with the `stamp_of` each.
    """

    version: str = "none"
    lists: tuple[EntityList, ...] = ()
    rules: tuple[ListedRule, ...] = ()
    stamps: tuple[tuple[Path, Stamp], ...] = ()


def stamp_of(file: Path) -> Stamp:
    """Return time of change, inode and size: others once the file is another; zeros: none there."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size


def load_rulebook(path: Path) -> Rulebook:
    """Read and check a file and the lists that it names.

    Raises:
        ConfigurationError: Not readable, or something in it is wrong; says where: the line, or
            the list or rule and its field.
    """
    stamps = [(path, stamp_of(path))]  # before reading: what changes meanwhile is read again
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode())
        found = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {_place(str(error), data)}.") from error
    except (OSError, ValueError) as error:  # a TOML error names the line
        raise ConfigurationError(f"{path} is no file of lists and rules: {error}.") from error
    digest = hashlib.sha256(raw)
    lists = []
    for entry in found.lists:
        values = _values(path, entry, stamps, digest)
        lists.append(msgspec.structs.replace(entry, values=values))
    _check(path, found)
    version = f"{found.version}-{digest.hexdigest()[:6]}"
    return Rulebook(version, tuple(lists), tuple(found.rules), tuple(stamps))


def _values(
    path: Path, entry: EntityList, stamps: list[tuple[Path, Stamp]], digest: hashlib._Hash
) -> list[str]:
    """Return a list's values with those of its file."""
    values = list(entry.values)
    place = f"{path}: list {entry.name}"
    if entry.field not in FIELDS:
        raise ConfigurationError(f"{place}: no field {entry.field}; there are {', '.join(FIELDS)}.")
    if entry.values_file is not None:
        file = path.parent / entry.values_file
        stamps.append((file, stamp_of(file)))
        try:
            raw = file.read_bytes()
            values += [line.strip() for line in raw.decode().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{place}: values_file {file}: {error}.") from error
        digest.update(raw)
    if not values or not all(values) or len(values) > MAX_VALUES:
        raise ConfigurationError(
            f"{place}: has {len(values):,} values; it needs 1 to {MAX_VALUES:,}, none of them "
            f"empty."
        )
    if entry.hashed:
        wrong = next((i for i, value in enumerate(values) if not _KEY.match(value)), None)
        if wrong is not None:
            raise ConfigurationError(
                f"{place}: hashed is true, but value {wrong + 1} is no key of 16 hex digits; "
                f"`flagger rules key` makes them."
            )
    return values


def _check(path: Path, found: _File) -> None:
    names = [one.name for one in found.lists] + [one.name for one in found.rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) > MAX_ENTRIES:
        raise ConfigurationError(
            f"{path}: {len(names)} lists and rules, at most {MAX_ENTRIES}, each with a name of its "
            f"own; twice: {', '.join(twice) or 'none'}."
        )
    for rule in found.rules:
        for number, condition in enumerate(rule.when, 1):
            if problem := condition.problem():
                raise ConfigurationError(
                    f"{path}: rule {rule.name}, condition {number}: {problem}."
                )


def _place(text: str, data: dict[str, object]) -> str:
    """Return msgspec's words with the entry's name for `$.rule[2]`."""
    reason, _, where = text.partition(" - at `$")
    where = where.strip("`").lstrip(".")
    match = re.match(r"(list|rule)\[(\d+)\]\.?(.*)", where)
    if match:
        kind, number, field = match[1], int(match[2]), match[3]
        entries = data.get(kind)
        entry = entries[number] if isinstance(entries, list) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        where = ", ".join(
            filter(None, (f"{kind} {number + 1} ({name or 'without a name'})", field))
        )
    return f"{where}: {reason}" if where else reason
