"""Compares training runs: the paper's table of conditions, numbers of gist tokens and splits.

python -m gist_jax.report DIR… --output=report

A DIR is a training workdir or a folder of some, as launch/sweep.py leaves it. What the best checkpoints
wrote is scored anew. The report is a table in the terminal, results.csv, table.md for a README, figures
as PNG, and index.html, in which all outputs can be read side by side.

A file predictions/NAME.csv in a workdir is one more split, such as the suite's:
python -m gist_jax.evaluate --model=DIR --source=suite --output=DIR/predictions/suite.csv
"""

import pathlib
import shlex
import sys

from gist_jax import __version__
from gist_jax.cli import exit_on_user_error, parser
from gist_jax.errors import UserError
from gist_jax.evaluation import comparison
from gist_jax.evaluation.figures import figures
from gist_jax.evaluation.runs import read_runs
from gist_jax.evaluation.runs_page import write_page
from gist_jax.io import atomic_write, write_csv

FILES = ("results.csv", "table.md", "index.html")


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "directory", nargs="+", type=pathlib.Path, help="workdirs, or folders of them"
    )
    arguments.add_argument("--output", type=pathlib.Path, default="report", help="folder to write to")
    options = arguments.parse_args()
    with exit_on_user_error():
        if options.output.is_file():
            raise UserError(f"{options.output} is a file: choose another name for the output")
        runs, empty = read_runs(options.directory)
        compared = comparison.compare(runs)
        settings = comparison.settings_of(runs)
        table = comparison.rows(compared)
        drawn = {dark: figures(compared, table, settings, dark=dark) for dark in (False, True)}
        write_csv(options.output / "results.csv", table)
        markdown = comparison.as_markdown(table, settings)
        with atomic_write(options.output / "table.md") as tmp:
            tmp.write_text(f"{markdown}\n", encoding="utf-8")
        for name, figure in drawn[False].items():
            with atomic_write(options.output / f"{name}.png") as tmp:
                figure.savefig(tmp, dpi=150)
        about = {
            "runs": ", ".join(run.name for run in runs),
            "command": shlex.join(["python", "-m", "gist_jax.report", *sys.argv[1:]]),
            "version": f"gist_jax {__version__}",
        }
        if empty:
            about["not evaluated yet"] = ", ".join(empty)
            print(f"not evaluated yet: {', '.join(empty)}")
        both = {name: (drawn[False][name], drawn[True][name]) for name in drawn[False]}
        write_page(options.output / "index.html", compared, table, settings, both, about)
        print(comparison.as_text(table, settings))
        print(f"\nIn {options.output}/: {', '.join(FILES)} and {', '.join(drawn[False])} as PNG.")


if __name__ == "__main__":
    main()
