"""Asking a chat model many things at a time, and never the same twice: replies are kept on disk."""

import asyncio
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import filelock
from tqdm import tqdm

from gist_jax.errors import UserError, shortened
from gist_jax.workdir import whole_lines

_REFUSED = (400, 401, 403, 404, 405, 413, 422)  # it would be refused again


class Server(NamedTuple):
    """Where and how to ask."""

    base_url: str | None  # of an API like OpenAI's; None: theirs
    concurrency: int  # requests at a time, at most
    retries: int  # after the first try
    timeout: float  # seconds for a reply


class Replies:
    """The replies to requests by key, in a file that has a line for each as soon as it is there."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator["Replies"]:
        """Reads what is there, and keeps other processes out.

        Raises:
          UserError: if another one is in, or the file holds anything else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(filelock.FileLock(f"{self.path}.lock", timeout=0))
            except filelock.Timeout:
                raise UserError(f"another process is writing {self.path}") from None
            self._read()
            yield self

    def _read(self) -> None:
        lines = whole_lines(self.path) if self.path.exists() else []
        try:
            self.known = {entry["key"]: entry for entry in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path} holds something else than replies") from None
        if self.path.exists():  # without the line that a kill cut
            os.truncate(self.path, len("".join(lines).encode()))

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Keeps a reply: when this returns, it is on disk."""
        line = json.dumps({"key": key, **entry}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.known[key] = {"key": key, **entry}


def ask(requests: Mapping[str, Mapping[str, Any]], replies: Replies, server: Server) -> None:
    """Adds the replies to requests that have none yet.

    What fails for a while (a busy server, a time limit, a connection that is cut, a body that is no
    JSON) is tried again after longer and longer times, or when the server says.

    Args:
      requests: by key, what a chat completion is asked for: model, messages and so on.

    Raises:
      UserError: if a request is refused, or fails time after time. All other replies are kept.
    """
    left = {key: request for key, request in requests.items() if key not in replies.known}
    if left:
        asyncio.run(_ask(left, replies, server))


async def _ask(left: Mapping[str, Mapping[str, Any]], replies: Replies, server: Server) -> None:
    openai = _openai()
    key = os.environ.get("OPENAI_API_KEY") or ("none" if server.base_url else None)
    if key is None:
        raise UserError("the environment variable OPENAI_API_KEY is not set: give it, or --base_url")
    waiting = iter(left.items())
    failed: list[Any] = []
    refused: list[Any] = []

    async def work(client: Any, bar: tqdm) -> None:
        # After some failures in a row of tries the server is gone; what is under way still comes in.
        while len(failed) <= server.concurrency and not refused:
            if (following := next(waiting, None)) is None:
                return
            name, request = following
            try:
                replies.add(name, await _reply(client, request, server.retries))
                bar.update(1)
            except openai.APIStatusError as error:
                (refused if error.status_code in _REFUSED else failed).append(error)
            except (openai.OpenAIError, _Broken) as error:
                failed.append(error)

    settings = dict(base_url=server.base_url, timeout=server.timeout, max_retries=server.retries)
    async with openai.AsyncOpenAI(api_key=key, **settings) as client:
        with tqdm(total=len(left), desc="judging", unit="reply") as bar:
            await asyncio.gather(*(work(client, bar) for _ in range(server.concurrency)))
    if refused:
        raise UserError(f"the judge refuses a request: {shortened(refused[0])}")
    if failed:
        lacking = sum(name not in replies.known for name in left)
        raise UserError(
            f"{lacking} of {len(left)} replies did not come ({shortened(failed[0])}): those that did "
            f"are in {replies.path}, and the same command asks for the rest"
        )


class _Broken(Exception):
    """A reply whose body is no chat completion."""


async def _reply(client: Any, request: Mapping[str, Any], retries: int) -> dict[str, Any]:
    """The reply to a request, its usage, and why it ended."""
    for number in range(retries + 1):
        try:
            completion = await client.chat.completions.create(**request)
            choice, usage = completion.choices[0], completion.usage
            text = choice.message.content or ""
        except (ValueError, AttributeError, IndexError, TypeError):  # no JSON, or of another kind
            await asyncio.sleep(min(0.5 * 2**number, 8.0))
            continue
        counts = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
        return {"reply": text, "finish_reason": choice.finish_reason, "usage": counts}
    raise _Broken("its replies are no chat completions")


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise UserError("a judge needs the package openai: pip install 'gist_jax[judge]'") from None
    return openai
