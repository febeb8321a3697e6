"""Groups the members of a tar into samples, in tar order; each sample becomes a row of the index or a fault.

Rules where a key appears more than once in a shard:

- Complete samples of one key: the first is kept, each later one is a DUPLICATE_KEY.
- Parts of one sample with other samples between them: SPLIT_KEY, and the sample is left out.
- The same member twice within one sample, or two members of one input: DUPLICATE_KEY, and the sample is left out, as
  nothing tells which text belongs to which image.

A sample next to a break of the tar is left out without a fault of its own, unless it is complete.

Members of a key of which none is an input that is read, or a text or a file of a known medium without a name of its
own, are an UNKNOWN_MEMBER, a fault for each name up to its last dot: ``photo.v1.jpg`` and ``photo.v1.txt`` have the key
``photo``, and the extensions ``v1.jpg`` and ``v1.txt``. Other members that are part of no sample (``.cls`` beside an
image, inputs that are not read, hidden files, files without extension) are counted.

All samples of a shard have one medium for an input: another one is a WRONG_MEDIUM.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from pipelines.data.index.fault import QuarantineEntry
from pipelines.data.index.sample_check import Row, SampleRules, check_sample, member_problem
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.headers import MemberKind, TarCorruption, TarMember
from pipelines.data.tars.inputs import TEXT, input_of_extension
from pipelines.data.tars.member_names import is_hidden_path, path_leaves_folder, split_name

_EXTENSIONS_COUNTED = 50


@dataclass
class _MemberGroup:
    """Adjacent tar members of one key, by extension; ``inputs`` has the extension of each input that is read, texts
    left out.
    """

    key: str
    rules: SampleRules
    after_corruption: bool
    members: dict[str, TarMember] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    fault: QuarantineEntry | None = None
    has_text: bool = False
    is_unknown: bool = True
    """Whether no member is an input, as far as its extension tells."""

    @property
    def first_member(self) -> TarMember:
        return next(iter(self.members.values()))

    @property
    def member_kinds(self) -> frozenset[str]:
        """Return the names of the inputs in a group of tar members, and the extensions of the other members."""
        return frozenset(self.inputs) | (self.members.keys() - set(self.inputs.values()))

    @property
    def is_complete(self) -> bool:
        needed = self.rules.input_requirements
        has = {name for name in needed if (self.has_text if name == TEXT else name in self.inputs)}
        return bool(has) and all(name in has for name, is_required in needed.items() if is_required)

    @property
    def starts_new_sample_on_repeat(self) -> bool:
        """Whether a second member with the extension of an earlier one begins another sample."""
        return self.is_complete or self.is_unknown

    def add(self, extension: str, member: TarMember) -> None:
        problem = member_problem(extension, member)
        found = self.rules.input_of_member(extension)
        self.is_unknown &= found is None and ("." in extension or input_of_extension(extension) is None)
        if found is not None and found.name == TEXT:
            self.has_text = True
        elif found is not None:
            earlier = self.members.get(self.inputs.setdefault(found.name, extension))
            if problem is None and earlier is not None:
                detail = f"two members for the input {found.name!r} of one key: {earlier.name!r} and {member.name!r}"
                problem = FaultReason.DUPLICATE_KEY, detail
        if problem is not None and self.fault is None:
            self.fault = QuarantineEntry(self.key, member.name, member.offset, *problem)
        self.members[extension] = member


@dataclass
class _EarlierSample:
    outcome: int  # index in the list of outcomes
    extensions: frozenset[str]
    offset: int
    is_split: bool = False


class SampleGroups:
    """Groups the members of a tar into samples, and collects in ``outcomes`` a row or a fault for each sample."""

    def __init__(self, rules: SampleRules) -> None:
        self.outcomes: list[Row | QuarantineEntry] = []
        self.passed_over: Counter[str] = Counter()
        """Members that are part of no sample, by extension (".cls"), "hidden" or "no extension"."""
        self._rules = rules
        self._earlier: dict[str, _EarlierSample] = {}
        self._group: _MemberGroup | None = None
        self.inputs: dict[str, str] = {}
        """The medium of each input of these samples but texts."""
        self._after_corruption = False
        # The kinds of members of this shard's first valid sample: what its other samples are taken to have.
        self._usual_kinds: frozenset[str] | None = None

    def add(self, member: TarMember) -> None:
        if member.kind is MemberKind.DIRECTORY and not path_leaves_folder(member.name):
            return
        key_and_extension = split_name(member.name)
        if key_and_extension is None:
            if (problem := member_problem("", member)) is not None:
                self.finish_group("next")
                self.outcomes.append(QuarantineEntry(None, member.name, member.offset, *problem))
            else:
                self._count_skipped_member("hidden" if is_hidden_path(member.name) else "no extension")
            return
        key, extension = key_and_extension
        if self._rules.input_of_member(extension) is None:
            self._count_skipped_member(f".{extension}")
        group = self._group
        if group is None or group.key != key or (extension in group.members and group.starts_new_sample_on_repeat):
            self.finish_group("next")
            group = self._group = _MemberGroup(key, self._rules, self._after_corruption)
            self._after_corruption = False
        group.add(extension, member)

    def add_corruption(self, corruption: TarCorruption) -> None:
        lost_key = self.finish_group("corruption")
        key = (split_name(corruption.member) or (lost_key,))[0] if corruption.member else lost_key
        self.outcomes.append(
            QuarantineEntry(key, corruption.member, corruption.offset, corruption.reason, corruption.detail)
        )
        self._after_corruption = True

    def finish_group(self, what_follows: Literal["next", "corruption", "end"]) -> str | None:
        """Add the row or the fault of the current sample. Returns its key if a corruption of the tar destroyed it."""
        group, self._group = self._group, None
        if group is None:
            return None
        if what_follows == "corruption" or group.after_corruption:
            usual = self._usual_kinds or group.member_kinds
            if not group.is_complete or not group.member_kinds >= usual:
                return group.key
        if group.is_unknown and group.fault is None:
            self.outcomes.extend(_unknown_member_faults(group))
            return None
        if group.key in self._earlier:
            if (fault := self._repeated_key_fault(group)) is not None:
                self.outcomes.append(fault)
            return None
        outcome = group.fault or check_sample(group.key, group.members, group.inputs, self._rules)
        if isinstance(outcome, dict):
            outcome = self._wrong_medium_fault(group) or outcome
        if self._usual_kinds is None and isinstance(outcome, dict):
            self._usual_kinds = group.member_kinds
        self._earlier[group.key] = _EarlierSample(
            len(self.outcomes), frozenset(group.members), group.first_member.offset
        )
        self.outcomes.append(outcome)
        return None

    def _count_skipped_member(self, kind: str) -> None:
        is_counted = kind in self.passed_over or len(self.passed_over) < _EXTENSIONS_COUNTED
        self.passed_over[kind if is_counted else "other extensions"] += 1

    def _wrong_medium_fault(self, group: _MemberGroup) -> QuarantineEntry | None:
        """Return the fault of a sample in which an input has another medium than in earlier samples; None if
        all agree.
        """
        for name, extension in group.inputs.items():
            found = input_of_extension(extension)
            assert found is not None
            if (usual := self.inputs.setdefault(name, found.medium)) != found.medium:
                detail = f"the input {name!r} is of medium {usual} in the samples before, and here of {found.medium}"
                member = group.members[extension]
                return QuarantineEntry(group.key, member.name, member.offset, FaultReason.WRONG_MEDIUM, detail)
        return None

    def _repeated_key_fault(self, group: _MemberGroup) -> QuarantineEntry | None:
        """Return the fault of a sample whose key occurred before; None if the earlier sample's outcome becomes the
        fault of both.
        """
        earlier, first = self._earlier[group.key], group.first_member
        extensions = frozenset(group.members)
        if earlier.extensions & extensions:
            detail = f"the key was used before, at byte {earlier.offset}; the first dot of a base name ends the key"
            return group.fault or QuarantineEntry(
                group.key, first.name, first.offset, FaultReason.DUPLICATE_KEY, detail
            )
        # The other part of a sample whose outcome was decided too early: the two together are one fault.
        earlier.extensions |= extensions
        if not earlier.is_split:
            detail = f"members of one key are not adjacent: at byte {earlier.offset} and at byte {first.offset}"
            fault = group.fault or QuarantineEntry(group.key, first.name, first.offset, FaultReason.SPLIT_KEY, detail)
            outcome = self.outcomes[earlier.outcome]
            if not (isinstance(outcome, QuarantineEntry) and outcome.reason is FaultReason.UNSAFE_MEMBER):
                self.outcomes[earlier.outcome] = fault
            earlier.is_split = True
        return None


def _unknown_member_faults(group: _MemberGroup) -> list[QuarantineEntry]:
    """Return faults for members with unknown extensions, one for each name up to its last dot."""
    first: dict[str, tuple[str, TarMember]] = {}
    for extension, member in group.members.items():
        first.setdefault(member.name.rpartition(".")[0], (extension, member))
    faults = []
    for extension, member in first.values():
        detail = f"no input by its extension, .{extension}"
        if (found := input_of_extension(extension)) is not None:
            detail = f"the input {found.name!r}, which is not read (data.index.inputs)"
        if "." in extension:
            detail += f"; the first dot of a base name ends the key ({group.key!r}): use no other dots in keys"
        faults.append(QuarantineEntry(group.key, member.name, member.offset, FaultReason.UNKNOWN_MEMBER, detail))
    return faults
