"""A server on this machine that speaks the protocol of chat completions, and misbehaves on purpose."""

import collections
import http.server
import json
import re
import threading
import time
from collections.abc import Callable

# What may happen in place of a reply. "hold" waits until the server is closed.
FAULTS = ("500", "429", "slow", "no json", "other json", "null", "cut", "hang up")


def choose_good(prompt: str) -> str:
    """Chooses the answer in which the word good stands, or neither, in well-formed JSON."""
    found = re.search(r"<answer_a>\n(.*?)\n</answer_a>\n<answer_b>\n(.*?)\n</answer_b>", prompt, re.S)
    good = [text.split().count("good") for text in found.groups()]
    choice = "tie" if good[0] == good[1] else "AB"[good[0] < good[1]]
    return json.dumps({"reason": f"{good[0]} and {good[1]}", "choice": choice})


class ChatServer:
    """Answers requests in threads while it is a context.

    Args:
      reply: the text that answers a prompt.
      fault: what happens to the n-th request for a prompt, from 0: one of FAULTS, "401", "hold" or "".
    """

    def __init__(
        self,
        reply: Callable[[str], str] = choose_good,
        fault: Callable[[str, int], str] = lambda prompt, number: "",
    ) -> None:
        self.reply, self.fault = reply, fault
        self.asked: dict[str, list[float]] = collections.defaultdict(list)  # when, by prompt
        self.answered: collections.Counter[str] = collections.Counter()  # wholly, by prompt
        self.at_a_time = self.most_at_a_time = 0
        self.lock, self.closed = threading.Lock(), threading.Event()

    def __enter__(self) -> "ChatServer":
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.answer(self, body)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def answer(self, handler, body) -> None:
        prompt = body["messages"][-1]["content"]
        with self.lock:
            number = len(self.asked[prompt])
            self.asked[prompt].append(time.monotonic())
            self.at_a_time += 1
            self.most_at_a_time = max(self.at_a_time, self.most_at_a_time)
        try:
            self._answer(handler, prompt, self.fault(prompt, number))
        except OSError:  # who asked is gone
            handler.close_connection = True
        finally:
            with self.lock:
                self.at_a_time -= 1

    def _answer(self, handler, prompt: str, fault: str) -> None:
        message = {"role": "assistant", "content": self.reply(prompt)}
        if fault == "null":
            message["content"] = None
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        whole = json.dumps(completion).encode()
        if fault in ("500", "401"):
            return self._send(handler, int(fault), b'{"error": {"message": "it does not like it"}}')
        if fault == "429":
            return self._send(handler, 429, b'{"error": {"message": "later"}}', {"Retry-After": "1"})
        if fault in ("slow", "hold"):
            self.closed.wait(1.5 if fault == "slow" else 60)
            return self._send(handler, 503, b"{}")
        if fault == "no json":
            return self._send(handler, 200, whole[: len(whole) // 2])
        if fault == "other json":
            return self._send(handler, 200, b'{"status": "loading"}')
        if fault == "cut":
            self._send(handler, 200, whole, cut=True)
        if fault in ("cut", "hang up"):
            handler.close_connection = True
            handler.connection.close()
            return None
        self._send(handler, 200, whole)
        with self.lock:
            self.answered[prompt] += 1
        return None

    def _send(self, handler, code: int, body: bytes, headers=(), cut=False) -> None:
        handler.send_response(code)
        for name, value in {**dict(headers), "Content-Type": "application/json"}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if cut else body)
        handler.wfile.flush()
