"""The programs of `against_transformers` as transformers has them, in a process of their own.

So neither side's threads, nor the allocator that our commands set up, touch the other's.

Shape letters: B batch, T tokens of a row.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import transformers
from ml_collections import ConfigDict

from gist_jax.benchmark.programs import Programs, batches, shortened_outputs
from gist_jax.data.tokenization import train_bpe
from gist_jax.errors import UserError
from gist_jax.interop.export import export
from gist_jax.models.config import LlamaConfig
from gist_jax.models.stack import Params


@contextlib.contextmanager
def exported(params: Params, config: LlamaConfig) -> Iterator[str]:
    """A temporary directory with the weights, of stacked layers, for transformers to load.

    Raises:
      UserError: if PyTorch, which is optional, is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("the comparison needs PyTorch: pip install 'gist_jax[torch]'")
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = train_bpe(["a"], 260)  # belongs to what is exported; nothing is encoded
        export(directory, params, config, tokenizer, num_gist_tokens=0, condition="gist")
        yield directory


@contextlib.contextmanager
def started(
    directory: str, settings: ConfigDict, compiles: bool
) -> Iterator[tuple[Programs, Callable[[], str]]]:
    """Starts a process with the weights of a directory, and ends it.

    Args:
      settings: those of the optimizer are used.
      compiles: by torch.compile; generation has a static cache then, as it must.

    Yields:
      The programs, and what makes a line on versions and threads.

    Raises:
      UserError: if the process fails.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()

    def call(name: str, *arguments: Any) -> Any:
        try:
            ours.send((name, arguments))
            return ours.recv()
        except (EOFError, OSError):
            process.join()
            raise UserError(f"the process of PyTorch ended with {process.exitcode}") from None

    def trainer(tokens: np.ndarray) -> Callable[[], float]:
        call("prepare_training", tokens)
        return functools.partial(call, "step")

    given = directory, settings.optimizer.to_dict(), compiles
    process = context.Process(target=_serve, args=(its, *given), daemon=True)
    process.start()
    its.close()
    try:
        generate, answer, describe = (
            functools.partial(call, name) for name in ("generate", "answer", "describe")
        )
        yield Programs(trainer, generate, answer), describe
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, directory: str, optimizer: dict[str, Any], compiles: bool) -> None:
    """Does what it is told over a connection, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    transformers.utils.logging.disable_progress_bar()
    server = _Server(directory, optimizer, compiles)
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            connection.send(getattr(server, name)(*arguments))


class _Server:
    """transformers' programs on the weights of a directory."""

    def __init__(self, directory: str, optimizer: dict[str, Any], compiles: bool) -> None:
        import torch

        self.torch, self.optimizer, self.compiles = torch, optimizer, compiles
        self.load = functools.partial(
            transformers.AutoModelForCausalLM.from_pretrained, directory, dtype=torch.float32
        )
        self.model = self.load().eval()
        self.model.generation_config.eos_token_id = None
        self.options: dict[str, Any] = {}
        if compiles:
            how = transformers.CompileConfig(mode="default", fullgraph=False)
            # Without it transformers compiles for accelerators alone.
            how._compile_all_devices = True  # type: ignore[assignment]  # declared None
            self.options = dict(cache_implementation="static", compile_config=how)

    def prepare_training(self, tokens: np.ndarray) -> None:
        """Prepares training from the first weights, always on the same tokens."""
        torch, given = self.torch, self.optimizer
        model = self.load().train()
        run = torch.compile(model) if self.compiles else model
        adamw = torch.optim.AdamW(
            model.parameters(),
            lr=given["learning_rate"],
            betas=(given["b1"], given["b2"]),
            eps=given["eps"],
            weight_decay=given["weight_decay"],
            fused=True,
        )
        self.training = model, run, adamw, torch.from_numpy(tokens).long()

    def step(self) -> float:
        """Makes a step of training; its loss."""
        model, run, adamw, ids = self.training
        adamw.zero_grad()
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(model.parameters(), self.optimizer["clip_norm"])
        adamw.step()
        return loss.item()

    def generate(self, tokens: np.ndarray, count: int) -> np.ndarray:
        return self._generated(tokens, np.ones_like(tokens), count)

    def answer(
        self, prompts: Sequence[np.ndarray], counts: Sequence[int], batch: int
    ) -> list[np.ndarray]:
        outputs: list[np.ndarray] = []
        for rows, limits in batches(prompts, counts, batch):
            longest = max(map(len, rows))
            tokens = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
            mask = np.stack([np.pad(np.ones_like(row), (longest - len(row), 0)) for row in rows])
            outputs += shortened_outputs(self._generated(tokens, mask, max(limits)), limits)
        return outputs

    def _generated(self, tokens: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
        ids, mask_of_ids = (self.torch.from_numpy(x).long() for x in (tokens, mask))
        fixed: dict[str, Any] = dict(attention_mask=mask_of_ids, do_sample=False, pad_token_id=0)
        output = self.model.generate(ids, max_new_tokens=count, **fixed, **self.options)
        return output[:, tokens.shape[1] :].numpy()

    def describe(self) -> str:
        """Versions, threads, and how fast memory is read: a sum over 1 GiB, the best of ten."""
        torch = self.torch
        array = torch.ones(2**28)

        def seconds() -> float:
            start = time.perf_counter()
            array.sum()
            return time.perf_counter() - start

        bandwidth = array.nbytes / min(seconds() for _ in range(10))
        return (
            f"transformers {transformers.__version__}, torch {torch.__version__} with "
            f"{torch.get_num_threads()} threads, which sum {bandwidth / 1e9:.1f} GB/s"
        )
