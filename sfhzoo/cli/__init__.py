"""The command line: parse, call, print. Nothing heavy is imported before a command runs.

Exit codes: 0 fine, 1 a check failed (or anything unforeseen), 2 wrong usage, 3 bad input data,
4 artifact missing or corrupt, 5 the sampler failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from sfhzoo import __version__
from sfhzoo.errors import SfhzooError

_COMMANDS = {
    "infer": ("sfhzoo.cli.infer", "infer_command", "Posterior SFH and metallicity of a spectrum."),
    "example": ("sfhzoo.cli.infer", "example_command", "Path of the bundled SDSS spectrum."),
    "list": ("sfhzoo.cli.zoo", "list_command", "What is in the zoo, and what is on this disk."),
    "show": ("sfhzoo.cli.zoo", "show_command", "The card of an artifact: what it is, how good."),
    "pull": ("sfhzoo.cli.zoo", "pull_command", "Fetch and verify artifacts."),
    "path": ("sfhzoo.cli.zoo", "path_command", "Where an artifact is on this disk."),
    "verify": ("sfhzoo.cli.zoo", "verify_command", "Check artifacts on this disk."),
    "remove": ("sfhzoo.cli.zoo", "remove_command", "Delete pulled artifacts."),
    "cite": ("sfhzoo.cli.zoo", "cite_command", "BibTeX of artifacts."),
    "publish": ("sfhzoo.cli.zoo", "publish_command", "Publish an artifact on the Hub."),
    "train": ("sfhzoo.cli.train", "train_command", "Train a prior from a recipe."),
    "import-checkpoint": (
        "sfhzoo.cli.import_checkpoint",
        "import_command",
        "Make a prior of a checkpoint of score_models.",
    ),
    "amortize": ("sfhzoo.cli.train", "amortize_command", "Train a posterior network."),
    "validate": (
        "sfhzoo.cli.validate",
        "validate_command",
        "Coverage and recovery on mock observations.",
    ),
    "compare": (
        "sfhzoo.cli.compare",
        "compare_command",
        "Priors side by side: galaxies, posteriors, Bayes factors.",
    ),
    "grid": ("sfhzoo.cli.grid", "grid_group", "Stellar populations: build, show, check, compare."),
    "simulation": (
        "sfhzoo.cli.simulation",
        "simulation_group",
        "Training sets: build, check, mocks.",
    ),
    "prior": ("sfhzoo.cli.prior", "prior_group", "Priors: evaluate."),
    "doctor": ("sfhzoo.cli.doctor", "doctor_command", "Check this installation."),
}

_EXTRAS = {
    "diffstar": "simulations",
    "diffmah": "simulations",
    "dsps": "simulations",
    "jax": "simulations",
    "bagpipes": "grids",
    "fsps": "grids",
    "pst": "grids",
    "h5py": "particles",
    "pyarrow": "particles",
    "distributed": "dask",
    "sklearn": "validate",
}
"""The optional dependencies that bring each package."""


class _LazyGroup(click.Group):
    """Lists commands with their help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in _COMMANDS:
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sfhzoo")
def cli() -> None:
    """sfhzoo: priors over galaxy star formation histories, and posteriors from spectra.

    Try: sfhzoo infer $(sfhzoo example)
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line; every error becomes one line and an exit code."""
    # threads that wait for each other burn the processor: beside two busy processes a fit took 21
    # instead of 13 s; read when torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """The exit code of a command line."""
    try:
        result = cli.main(args=args, prog_name="sfhzoo", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as e:
        return int(e.exit_code)
    except click.ClickException as e:
        e.show()
        # click's own code 1 for a file that cannot be opened means a failed check here
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except SfhzooError as e:
        return _fail(str(e), e.exit_code, e)
    except FileExistsError as e:
        return _fail(str(e), 2, e)
    except BrokenPipeError:
        # the reader (head, less) has gone; a second error at exit would only confuse
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        return _fail(f"{where}{e.strerror or e}", 1, e)
    except ModuleNotFoundError as e:
        text = f"this command needs the package {e.name!r}, which is not installed"
        extra = _EXTRAS.get(str(e.name).partition(".")[0])
        return _fail(f"{text}: pip install 'sfhzoo[{extra}]'" if extra else text, 1, e)
    except Exception as e:  # noqa: BLE001  the last resort between a user and a traceback
        text = f"unexpected {type(e).__name__}: {e} (please report; SFHZOO_DEBUG=1 shows more)"
        return _fail(text, 1, e)


def _fail(message: str, code: int, error: BaseException) -> int:
    if os.environ.get("SFHZOO_DEBUG"):
        raise error
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
