"""Writes a model's own outputs for instructions and inputs, as data to train on.

python -m gist_jax.label --model=DIR --source=json:prompts.json --output=DIR

The model reads the whole prompts, without gist tokens and without an adapter. The same command resumes
where it was stopped; several processes share the work, see launch/. What it writes is a data source.
"""

import argparse
import dataclasses
import pathlib

from gist_jax import cli
from gist_jax.data.sources import Examples, first, load_data
from gist_jax.errors import UserError
from gist_jax.evaluation.labels import Labelling, label
from gist_jax.inference.load import load_chosen
from gist_jax.inference.sampling import make_sampling
from gist_jax.training import distributed

# Arguments that outputs depend on, whole numbers and at least 1.
_POSITIVE = ("num_outputs", "max_new_tokens", "max_input_length", "batch_size")


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    cli.add_model(arguments)
    arguments.add_argument("--source", required=True, help="as config.data.source; needs no outputs")
    arguments.add_argument("--output", required=True, type=pathlib.Path, help=cli.OUTPUT_HELP)
    arguments.add_argument("--num_examples", type=int, help="only the first so many of every split")
    arguments.add_argument("--num_outputs", type=int, default=1, help="for every example")
    arguments.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    arguments.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    arguments.add_argument("--top_p", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--max_new_tokens", type=int, default=256)
    arguments.add_argument("--max_input_length", type=int, default=512, help="tokens of a prompt")
    arguments.add_argument("--batch_size", type=int, default=64, help="prompts at a time")
    options = arguments.parse_args()
    for name in (*_POSITIVE, "num_examples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            arguments.error(f"--{name} must be at least 1, but is {getattr(options, name)}")
    if options.num_outputs > 1 and not options.temperature:
        arguments.error("--num_outputs above 1 needs a --temperature: all outputs would be equal")
    with cli.exit_on_user_error():
        cli.set_up_libraries()
        distributed.initialize()
        _label(options)
        if distributed.is_first():
            print(f"{options.output} is written")


def _label(options: argparse.Namespace) -> None:
    if options.output.exists():
        raise UserError(f"{options.output} exists already: choose another name for the output")
    sampling = make_sampling(options.temperature, options.top_k, options.top_p)
    data = load_data(options.source, labelled=False)
    splits: dict[str, Examples] = data.splits
    if options.num_examples is not None:
        splits = {name: first(split, options.num_examples) for name, split in splits.items()}
    model = load_chosen(options)
    teacher = dataclasses.replace(
        model, num_gist_tokens=0, gist_token_choices=(), condition="pos_control", adapter=None
    )
    depends_on = ("num_examples", "temperature", "top_k", "top_p", "seed", "dtype", *_POSITIVE)
    made_of = {name: getattr(options, name) for name in depends_on}
    made_of |= {"model": teacher.origin.base, "data": data.fingerprint}
    distributed.check_same("model, data and arguments", str(made_of))
    given = (getattr(options, name) for name in ("seed", *_POSITIVE[1:]))
    label(teacher, splits, options.output, Labelling(options.num_outputs, sampling, *given), made_of)


if __name__ == "__main__":
    main()
