"""What a shell offers after Tab: commands, options and names, found without importing PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from clframe import registry
from clframe.cli.source_fields import fields_in_source
from clframe.registry import Kind

__all__ = ["SCRIPTS", "candidates"]

_NAMED: dict[str, Kind] = {"scenario": "scenario", "strategy": "strategy", "backbone": "backbone", "track": "tracker"}
"""Sections whose first value is a registered name."""
_CLASSES = {
    "head": "clframe.models.heads:HeadConfig",
    "optimizer": "clframe.training.recipe:Recipe",
    "first_optimizer": "clframe.training.recipe:Recipe",
}
"""Sections that have one class."""
_DEFAULTS = {"scenario": "split_digits", "strategy": "finetune", "backbone": "mlp"}
_PLURALS: dict[str, Kind] = {
    "strategies": "strategy",
    "scenarios": "scenario",
    "backbones": "backbone",
    "trackers": "tracker",
    "metrics": "metric",
}

SCRIPTS = {
    "bash": """\
# clframe's completion for bash. In ~/.bashrc:  eval "$(clframe completion bash)"
_clframe() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" _complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o nosort -F _clframe clframe
""",
    "zsh": """\
#compdef clframe
# clframe's completion for zsh. In ~/.zshrc, after compinit:  eval "$(clframe completion zsh)"
_clframe() {
    local -a found
    found=("${(@f)$(${words[1]} _complete "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found[1]" ]]; then compadd -Q -- "${found[@]}"; else _files; fi
}
compdef _clframe clframe
""",
    "fish": """\
# clframe's completion for fish. In ~/.config/fish/config.fish:  clframe completion fish | source
function __clframe_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] _complete $words[2..-1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c clframe -f -a '(__clframe_complete)'
""",
}
"""What `clframe completion SHELL` prints."""


def candidates(words: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Return what the last word may become; nothing means a file.

    Args:
        words: Those behind `clframe`, the one that is being typed last; bash gives `=` as a word of its own.
        commands: Parsers by command.
    """
    words = [word for word in words if word != "="]
    current = words[-1] if words else ""
    if len(words) <= 1:
        return _starting(current, [*commands, "--help", "--version"])
    if words[0] not in commands:
        return []
    parser = commands[words[0]]
    if current.startswith("--") and "=" in current:
        option, _, value = current.partition("=")
        return [f"{option}={found}" for found in _values(option, value, words, parser)]
    if words[-2].startswith("--") and not current.startswith("-") and _takes_value(words[-2], parser):
        return _values(words[-2], current, words, parser)
    if current.startswith("-"):
        return _starting(current, _options(current, words, parser))
    return _positional(words, current)


def _starting(start: str, found: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for name in found if name.startswith(start)))


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def _takes_value(option: str, parser: argparse.ArgumentParser) -> bool:
    action = _flags(parser).get(option)
    return bool(parser.get_default("takes_overrides")) if action is None else action.nargs != 0


def _values(option: str, start: str, words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    action = _flags(parser).get(option)
    if action is not None and action.choices:
        return _starting(start, list(map(str, action.choices)))
    if option in ("--track", "--to"):
        return _joined(start, ",", registry.available("tracker"))
    if action is not None:
        return []
    section, _, name = option[2:].replace("-", "_").partition(".")
    if section in _NAMED and not name:
        return _joined(start, "+" if section == "strategy" else "", registry.available(_NAMED[section]))
    fields = _fields(section, words) if name or section in _CLASSES else _run_options()
    return _starting(start, fields.get(name.rpartition(".")[2] or ("name" if section in _CLASSES else section), []))


def _joined(start: str, sign: str, names: Sequence[str]) -> list[str]:
    """Names behind those that are written already, as in `replay+ew`."""
    before, found, last = start.rpartition(sign) if sign else ("", "", start)
    return [before + found + name for name in _starting(last, names)]


def _options(current: str, words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    own = [option for option in _flags(parser) if option.startswith("--")]
    if not parser.get_default("takes_overrides"):
        return own
    section, dot, _ = current[2:].partition(".")
    if dot:
        names = _fields(section.replace("-", "_"), words)
        return [f"--{section}.{_dashed(name)}" for name in names if name != "name"]  # that is the section itself
    sections = [*_NAMED, *_CLASSES]
    return [*own, *(f"--{_dashed(name)}" for name in (*sections, "epochs", *_run_options()))]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _run_options() -> dict[str, list[str]]:
    return fields_in_source("clframe.config:RunOptions")


def _fields(section: str, words: Sequence[str]) -> dict[str, list[str]]:
    """Options of a section, of the names chosen on this command line."""
    if section in _CLASSES:
        return fields_in_source(_CLASSES[section])
    if section == "track":
        return {
            f"{tracker}.{name}": found
            for tracker in registry.available("tracker")
            for name, found in fields_in_source(registry.address("tracker", tracker)).items()
        }
    if section not in _NAMED:
        return {}
    kind = _NAMED[section]
    return {
        name: found
        for chosen in registry.split_names(_chosen(section, words))
        for name, found in fields_in_source(registry.address(kind, chosen)).items()
    }


def _chosen(section: str, words: Sequence[str]) -> str:
    """The name that a section is given earlier on the line."""
    chosen = _DEFAULTS.get(section, "")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == f"--{_dashed(section)}":
            chosen = value if equals else following
    return chosen


def _positional(words: Sequence[str], current: str) -> list[str]:
    offered: dict[str, Callable[[], list[str]]] = {
        "audit": lambda: _audits(words),
        "list": lambda: list(_PLURALS),
        "describe": lambda: _described(words),
        "check": lambda: [*registry.available("strategy"), *registry.available("scenario")],
        "completion": lambda: list(SCRIPTS),
    }
    return _starting(current, offered[words[0]]()) if words[0] in offered else []


def _audits(words: Sequence[str]) -> list[str]:
    from clframe.audits import KINDS

    return list(KINDS) if len(words) == 2 else []  # then directories follow


def _described(words: Sequence[str]) -> list[str]:
    kinds: tuple[Kind, ...] = ("strategy", "scenario", "backbone", "tracker", "metric")
    kind = words[-2] if len(words) > 2 else ""
    if kind in kinds:
        return _names(kind)
    return [*kinds, "run", "optimizer", "head", *(name for known in kinds for name in _names(known))]


def _names(kind: Kind) -> list[str]:
    if kind != "metric":
        return registry.available(kind)
    from clframe.metrics import CATALOGUE

    return list(CATALOGUE)
