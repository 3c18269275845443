"""Lets a chat model judge which of two runs' outputs are better, or reads what one has judged.

python -m gist_jax.judge --predictions=A.csv --against=B.csv --judge=MODEL --base_url=URL --output=O.json
python -m gist_jax.judge --judgements=O.json --labels=LABELS.csv

A and B may be training workdirs too, all of whose splits are judged then. The API's key is read from
OPENAI_API_KEY. Replies are kept in O.replies.jsonl as they come: the same command resumes where it was
stopped, and asks for nothing again.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gist_jax.cli import exit_on_user_error, nonempty, output_file, parser
from gist_jax.errors import UserError
from gist_jax.evaluation import judgements
from gist_jax.evaluation.agreement import agreement, read_labels
from gist_jax.evaluation.chat import Replies, Server, ask
from gist_jax.evaluation.judge import comparisons, estimated_tokens, request, request_key
from gist_jax.evaluation.judgements import Judgements
from gist_jax.evaluation.predictions import Record, read_splits, run_name
from gist_jax.evaluation.scores import as_text
from gist_jax.io import write_json

NEEDED = ("against", "judge", "output")


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", type=nonempty, help="CSV or workdir of the run that is judged")
    what.add_argument("--judgements", action="append", help="only read this file; may be given again")
    arguments.add_argument("--against", type=nonempty, help="CSV or workdir of the other run")
    arguments.add_argument("--judge", type=nonempty, help="name of the chat model")
    arguments.add_argument("--base_url", help="of an API like OpenAI's, which is the default")
    arguments.add_argument("--output", type=output_file, help="JSON to write the judgements to")
    arguments.add_argument("--both_orders", action="store_true", help="judge every row in both orders")
    arguments.add_argument("--labels", help="choices to compare with: judgements, or records")
    arguments.add_argument("--num_examples", type=int, help="only the first so many rows of a split")
    arguments.add_argument("--seed", type=int, default=0, help="of the orders")
    arguments.add_argument("--temperature", type=float, default=0.0, help="of the judge")
    arguments.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    arguments.add_argument("--retries", type=int, default=6, help="of a request that fails")
    arguments.add_argument("--timeout", type=float, default=60.0, help="seconds for a reply")
    arguments.add_argument(
        "--price", type=_price, metavar="IN,OUT", help="dollars for a million tokens, for the estimate"
    )
    arguments.add_argument("--dry-run", action="store_true", help="only estimate the cost")
    options = arguments.parse_args()
    if options.predictions is not None:
        for name in NEEDED:
            if getattr(options, name) is None:
                arguments.error(f"--predictions needs --{name}")
    for name, least in {"concurrency": 1, "num_examples": 1, "retries": 0, "timeout": 1e-3}.items():
        if getattr(options, name) is not None and getattr(options, name) < least:
            arguments.error(f"--{name} must be at least {least}, but is {getattr(options, name)}")
    with exit_on_user_error():
        judged = _judge(options) if options.judgements is None else _read(options.judgements)
        if judged is not None:
            print(f"{' against '.join(judged.names)}; win_rate is of wins and half of the ties")
            print(as_text(judgements.table(judged.results)))
            if options.labels is not None:
                labels = read_labels(options.labels, judged.names)
                print(f"\n{agreement(judgements.by_row(judged.results), labels)}")


def _price(text: str) -> tuple[float, float]:
    try:
        of_input, of_output = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between") from None
    return of_input, of_output


def _judge(options: argparse.Namespace) -> Judgements | None:
    """Asks for what is not known yet, and writes all; None if it is only to be estimated."""
    names = run_name(options.predictions), run_name(options.against)
    if names[0] == names[1]:
        names = options.predictions, options.against
    found = comparisons(_splits(options), names, seed=options.seed, both_orders=options.both_orders)
    requests = [request(x, options.judge, options.temperature) for x in found if not x.is_equal]
    by_key = {request_key(x): x for x in requests}
    with Replies(options.output.with_suffix(".replies.jsonl")).opened() as replies:
        unknown = {key: x for key, x in by_key.items() if key not in replies.known}
        print(f"{len(found)} comparisons, of which {len(found) - len(requests)} are of equal outputs")
        print(f"{len(unknown)} to ask {options.judge} for: {_cost(unknown.values(), options.price)}")
        if options.dry_run:
            return None
        server = Server(options.base_url, options.concurrency, options.retries, options.timeout)
        ask(unknown, replies, server)
        known = [replies.known[key] for key in by_key]
    answers = dict(zip(by_key, known, strict=True))
    results = []
    for x in found:
        key = request_key(request(x, options.judge, options.temperature))
        results.append(judgements.result(x, names, answers.get(key, {}).get("reply")))
    usage = judgements.usage(known)
    about = {"judge": options.judge, "temperature": options.temperature, "seed": options.seed}
    write_json(options.output, judgements.as_json(names, results, **about, usage=usage))
    read, written = usage.values()
    print(f"it took {_tokens(read, written, options.price)}; in {options.output}\n")
    return judgements.read_judgements(options.output)


def _splits(options: argparse.Namespace) -> dict[str, tuple[list[Record], list[Record]]]:
    """The records of both runs by split."""
    ours, theirs = read_splits(options.predictions), read_splits(options.against)
    if len(ours) == len(theirs) == 1:  # whatever the files are called
        theirs = dict(zip(ours, theirs.values(), strict=True))
    if not (shared := [split for split in ours if split in theirs]):
        raise UserError(
            f"{options.predictions} has the splits {', '.join(ours)}, and {options.against} "
            f"{', '.join(theirs)}: none of both"
        )
    first = slice(options.num_examples)
    return {split: (ours[split][first], theirs[split][first]) for split in shared}


def _cost(requests: Iterable[Mapping[str, Any]], price: tuple[float, float] | None) -> str:
    return f"about {_tokens(*estimated_tokens(requests), price)}"


def _tokens(read: int, written: int, price: tuple[float, float] | None) -> str:
    text = f"{read:,} tokens to read and {written:,} to write"
    if price is None:
        return text
    return f"{text}, {(read * price[0] + written * price[1]) / 1e6:.4f} dollars"


def _read(paths: Sequence[str]) -> Judgements:
    """The judgements of several files between the same runs."""
    files = [judgements.read_judgements(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        for name, counted in judgements.counted(file).items():
            if (said := file.scores.get(name, counted)) != counted:
                print(f"{path} says {said} for {name}, but its results amount to {counted}")
        if file.names != files[0].names:
            raise UserError(
                f"{path} compares {' and '.join(file.names)}, and {paths[0]} "
                f"{' and '.join(files[0].names)}"
            )
    results = [result for file in files for result in file.results]
    return Judgements(files[0].names, results, {})


if __name__ == "__main__":
    main()
