# SPDX-License-Identifier: Apache-2.0
"""`ambit lint -f FILE`: what the mesh would not honour in files, line by line, before they are applied.

The same translators judge as in the controller; nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.codes import EXIT_CHECK, EXIT_OK, EXIT_WARNINGS, CliError, Code
from cli.options import add_common
from cli.output import Screen, document, dump, plural, say
from mesh.config.objects import ObjectKey, RawObject, Rejection, parse_documents
from mesh.config.source import SUFFIXES

STDIN = "-"
_COLOURS = {"error": "red", "warning": "yellow"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "-f",
        dest="files",
        action="append",
        required=True,
        metavar="FILE|DIR|-",
        help="YAML; repeatable, - is stdin",
    )
    parser.add_argument(
        "--with-mesh",
        action="store_true",
        help="judge the files together with the objects of the mesh, as if they were applied",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say too what routes and destination policies come to, whatever dialect they are written in",
    )
    parser.add_argument(
        "--fail-on", choices=("error", "warning"), default="error", help="what makes the exit code non-zero"
    )
    add_common(parser, formats=("table", "json", "yaml"))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """One thing that is not in force as written."""

    file: str
    line: int
    severity: str
    object: str
    field: str
    reason: str
    code: str

    def __str__(self) -> str:
        said = ": ".join(part for part in (self.object, self.field, self.reason) if part)
        return f"{self.file}:{self.line}: {self.severity}: {said} ({self.code})"


def run(options: argparse.Namespace) -> int:
    """Print findings; 0: none that counts, 2: errors, 3: warnings, if these were to count."""
    objects, rejections = read(options.files)
    known: Mapping[ObjectKey, RawObject] = {}
    if options.with_mesh:
        from cli.target import open_target

        known = open_target(options).objects().objects
    found = lint(objects, rejections, known)
    explained = explain(objects, known) if options.explain else []
    if options.output in ("json", "yaml"):
        content = {"explained": explained} if options.explain else {}
        items = [_data(one) for one in found]
        print(dump(document("LintReport", items=items, **content), options.output))
    else:
        for line in explained:
            print(line)
        _show(found, len(objects), Screen.of(sys.stdout, options.color))
    severities = {one.severity for one in found}
    if "error" in severities:
        return EXIT_CHECK
    return EXIT_WARNINGS if severities and options.fail_on == "warning" else EXIT_OK


def read(names: Iterable[str]) -> tuple[list[RawObject], list[Rejection]]:
    """Read files, directories (all YAML below them) and standard input.

    Raises:
        CliError: one does not exist or cannot be read; names it.
    """
    objects: list[RawObject] = []
    rejections: list[Rejection] = []
    for file in _files(names):
        try:
            text = sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise CliError(Code.BAD_INPUT, f"{file} cannot be read: {reason}") from error
        found, refused = parse_documents(text, "stdin" if file == STDIN else file)
        objects += found
        rejections += refused
    return objects, rejections


def _files(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STDIN or path.is_file():
            found.append(name)
        elif path.is_dir():
            inner = sorted(str(p) for p in path.rglob("*") if p.suffix in SUFFIXES and p.name[0] != ".")
            if not inner:
                raise CliError(Code.BAD_INPUT, f"{name} has no {', '.join(SUFFIXES)} file")
            found += inner
        else:
            raise CliError(Code.BAD_INPUT, f"{name} does not exist")
    return found


def lint(
    objects: Sequence[RawObject], rejections: Sequence[Rejection], known: Mapping[ObjectKey, RawObject]
) -> list[Finding]:
    """Return what is wrong with objects, in order of files and lines; `known` are only there for context."""
    from controller.translate.mesh import Options, translate

    found = [
        Finding(
            file=r.file,
            line=r.line,
            severity="error",
            object=str(r.key) if r.key else "",
            field="",
            reason=r.reason,
            code=str(Code.REFUSED_OBJECTS),
        )
        for r in rejections
    ]
    own: dict[ObjectKey, RawObject] = {}
    for item in objects:
        if item.key in own:
            other = own[item.key]
            found.append(_repeated(item, other))
        own[item.key] = item
    files = {item.file for item in objects}
    for problem in translate({**known, **own}, Options()).problems:
        if problem.file not in files:
            continue
        code = Code.WRONG_FIELDS if problem.severity == "error" else Code.UNUSED_FIELDS
        found.append(
            Finding(
                file=problem.file,
                line=problem.line,
                severity=problem.severity,
                object=str(problem.key),
                field=_field(problem.path),
                reason=problem.reason,
                code=str(code),
            )
        )
    return sorted(set(found))


def explain(objects: Sequence[RawObject], known: Mapping[ObjectKey, RawObject]) -> list[str]:
    """Return in words what the routes and destination policies among the objects come to."""
    from controller.translate.gateway_route import source_of
    from controller.translate.mesh import Options, translate
    from controller.translate.wording import describe

    mesh = translate({**known, **{item.key: item for item in objects}}, Options())
    sources = {f"{item.kind}/{item.namespace}/{item.name}" for item in objects}
    sources |= {source_of(item) for item in objects}
    return describe(mesh.routes, mesh.streams, mesh.destinations, sources)


def _field(path: Sequence[str | int]) -> str:
    """Write `spec.rules[0].from`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _repeated(item: RawObject, other: RawObject) -> Finding:
    return Finding(
        file=item.file,
        line=item.line,
        severity="warning",
        object=str(item.key),
        field="",
        reason=f"is also in {other.file}:{other.line}; the last one counts",
        code=str(Code.UNUSED_FIELDS),
    )


def _data(one: Finding) -> dict[str, Any]:
    return {
        "file": one.file,
        "line": one.line,
        "severity": one.severity,
        "object": one.object,
        "field": one.field,
        "reason": one.reason,
        "code": one.code,
    }


def _show(found: Sequence[Finding], count: int, screen: Screen) -> None:
    for one in found:
        text = str(one)
        mark = f" {one.severity}: "
        print(text.replace(mark, f" {screen.paint(one.severity, _COLOURS[one.severity])}: ", 1))
    errors = sum(one.severity == "error" for one in found)
    warnings = len(found) - errors
    if not found:
        say(f"{plural(count, 'object')}: nothing to say")
        return
    parts = [plural(errors, "error")] if errors else []
    parts += [plural(warnings, "warning")] if warnings else []
    say(f"\n{plural(count, 'object')}: {', '.join(parts)}; `ambit explain CODE` says more")
