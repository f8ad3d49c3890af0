"""Commands for the shell and for a beginning: completion, init."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from clframe.cli.complete import SCRIPTS
from clframe.cli.overrides import parse_overrides
from clframe.errors import ConfigurationError

__all__ = ["add"]

_INIT_USAGE = "clframe init [FILE] [--strategy NAME | --strategy FILE.py] [--section.option VALUE ...]"
_INIT_HELP = """\
FILE (default run.yaml) holds every option of a run with what it means; options given here are its values:

  clframe init                              the default experiment with a memory of exemplars
  clframe init der.yaml --strategy der --scenario split_cifar100 --backbone resnet32
  clframe init --strategy mine.py           a strategy of your own to fill in, in mine.py
  clframe init run.yaml --strategy mine.py  both, the one running the other
"""
_COMPLETION_HELP = """\
bash:  eval "$(clframe completion bash)"     in ~/.bashrc
zsh:   eval "$(clframe completion zsh)"      in ~/.zshrc, after compinit
fish:  clframe completion fish | source      in ~/.config/fish/config.fish

Commands, options, the options of the strategy, scenario and backbone named on the line, and what they take.
"""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    init = command("init", "write a commented file to start from", _init, True, epilog=_INIT_HELP, usage=_INIT_USAGE)
    init.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the YAML file; default run.yaml")
    completion = command("completion", "print a shell's completion of clframe", _completion, epilog=_COMPLETION_HELP)
    completion.add_argument("shell", choices=list(SCRIPTS), metavar="SHELL", help=", ".join(SCRIPTS))


def _completion(options: argparse.Namespace) -> None:
    print(SCRIPTS[options.shell], end="")


def _init(options: argparse.Namespace) -> None:
    from clframe.report.starter import class_name_of, starter_yaml, strategy_skeleton

    given = parse_overrides(options.overrides)
    strategy = given.setdefault("strategy", {})
    name = strategy.setdefault("name", "replay")
    texts: dict[Path, str] = {}
    if name.endswith(".py"):
        own = Path(name)
        strategy["name"] = f"{own}:{class_name_of(own)}"
        texts[own] = strategy_skeleton(own)
    wanted = options.file or (None if texts else Path("run.yaml"))
    for file in [*texts, *([] if wanted is None else [wanted])]:
        if file.exists():
            raise ConfigurationError(f"The file {file} exists already: choose another name.")
    for file, text in texts.items():
        _write(file, text)
        print(f"{file}: fill it in, then `clframe check {file}:{class_name_of(file)}`")
    if wanted is not None:
        _write(wanted, starter_yaml(given, str(wanted)))
        print(f"{wanted}: `clframe run --config {wanted} --dry-run` shows what it does")


def _write(file: Path, text: str) -> None:
    from clframe.tracking.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
