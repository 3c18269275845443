"""The loss of a model on every validation split, in nats for a token and for a byte."""

from collections.abc import Callable

from tqdm import tqdm

from gist_jax.data.batching import batches_in_order
from gist_jax.data.prompt_template import EncodedExample
from gist_jax.models.stack import Params
from gist_jax.sharding import local_rows, place_rows
from gist_jax.training.distributed import is_first
from gist_jax.training.examples import examples_to_evaluate
from gist_jax.training.loop import Evaluate
from gist_jax.training.losses import ALL
from gist_jax.training.run import Run


def loss_evaluator(run: Run) -> Evaluate:
    """What the training loop calls to evaluate by loss.

    It gives "split/loss", nats for a predicted token, and "split/nats_per_byte", nats for a byte of the
    text that these tokens stand for. The latter compares models of different tokenizers. In
    distillation, too, it is cross-entropy.
    """
    splits = examples_of_splits(run)

    def evaluate(params: Params, step: int, between: Callable[[], None]) -> dict[str, float]:
        metrics = {}
        for name, examples in splits.items():
            nats, tokens, num_bytes = _measured(run, params, name, examples, between)
            metrics[f"{name}/loss"] = nats / tokens
            metrics[f"{name}/nats_per_byte"] = nats / num_bytes
        return metrics

    return evaluate


def examples_of_splits(run: Run) -> dict[str, list[EncodedExample]]:
    """What a run evaluates the loss of, by validation split."""
    return {
        name: examples_to_evaluate(run.config, split, run.template, f"{run.fingerprint} {name}")
        for name, split in run.splits.items()
        if name != "train"
    }


def _measured(
    run: Run,
    params: Params,
    split: str,
    examples: list[EncodedExample],
    between: Callable[[], None],
) -> tuple[float, int, int]:
    """The sum of the losses in nats, the number of tokens that they are of, and that of their bytes."""
    program, data = run.program, run.config.data
    size = data.batch_size // run.config.optimizer.accumulate
    local = local_rows(program.batch_sharding, size)
    nats, tokens, num_bytes = 0.0, 0, 0
    with tqdm(
        total=len(examples), desc=split, unit="example", leave=False, disable=not is_first()
    ) as bar:
        for batch in batches_in_order(
            examples,
            run.template,
            batch_size=size,
            max_length=data.max_length,
            max_output_length=data.max_output_length,
            predicts_prompt=run.config.loss.tokens == ALL,
        ):
            mine = {name: x[local] for name, x in batch.items()}
            placed = place_rows(mine, program.batch_sharding, size)
            nats += float(program.cross_entropy(params, placed, run.frozen))
            counted = batch["weights"] > 0
            tokens += int(counted.sum())
            for targets, of_row in zip(batch["targets"], counted, strict=True):
                num_bytes += run.template.tokenizer.num_bytes(targets[of_row])
            bar.update(min(size, len(examples) - bar.n))
            between()
    return nats, tokens, num_bytes
