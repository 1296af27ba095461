"""NativeSession against a child in Python that speaks hydrapack-run's lines."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from conftest import hydrapack

from hydrapack.device.native import NativeSession
from hydrapack.support.errors import (
    Busy,
    ContextFull,
    HydrapackError,
    Invalid,
    Mismatch,
    NotFound,
    RuntimeFailure,
)

CHILD = '''#!{python}
"""Answers with the prompt's own tokens, over and over; stops when it is told to."""
import json, os, queue, sys, threading

lines, stopped = queue.Queue(), set()
log = open(os.environ["CHILD_LOG"], "a")
print(os.getpid(), json.dumps(sys.argv[1:]), file=log, flush=True)
if "FAIL" in os.environ:
    sys.exit("hydrapack-run: error: " + os.environ["FAIL"])
if "NOISE" in os.environ:
    sys.stderr.write(("x" * 99 + "\\n") * 10000)  # 1 MB
    sys.stderr.flush()


def read():
    for text in sys.stdin:
        print(text.strip(), file=log, flush=True)
        line = json.loads(text)
        if "stop" in line:
            stopped.add(line["stop"])
        else:
            lines.put(line)
    lines.put(None)


def say(**line):
    print(json.dumps(line), flush=True)


threading.Thread(target=read, daemon=True).start()
print("I 00:00:00 ExecuTorch talks here too", flush=True)
while (line := lines.get()) is not None:
    number, made, finish = line["id"], [], "length"
    if line["task"] == "two":
        say(id=number, kind="Mismatch", error="no such luck")
        continue
    if line["task"] == "three":
        print("CHECK failed somewhere", file=sys.stderr, flush=True)
        os._exit(3)
    while len(made) < line["max_new_tokens"]:
        if number in stopped:
            finish = "stopped"
            break
        made.append(line["ids"][len(made) % len(line["ids"])])
        say(id=number, token=made[-1])
    stats = dict(load_ms=1, swap_ms=2, prefill_ms=3, prefill_tokens=len(line["ids"]), decode_ms=4,
                 decode_tokens=len(made), model_bytes=5)
    say(id=number, finish=finish, ids=made, stats=stats)
'''


@pytest.fixture
def child(tmp_path, monkeypatch):
    """The child's log, as lists: its start, then what it was sent."""
    program = tmp_path / "fake-hydrapack-run"
    program.write_text(CHILD.replace("{python}", sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("HYDRAPACK_RUN", str(program))
    monkeypatch.setenv("CHILD_LOG", str(tmp_path / "log"))
    return lambda: (tmp_path / "log").read_text().splitlines()


@pytest.fixture
def session(tiny, child):
    with NativeSession(tiny[0], tiny[1]) as session:
        yield session


def ended(pid):
    """Is the process gone, within some seconds?"""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_an_answer(session, child):
    answer = session.generate("hello ", max_new_tokens=9)
    assert answer.finish == "" and answer.ids == []
    assert "".join(answer) == "hello hel" and answer.finish == session.stats.finish == "length"
    assert session.stats.prefill_tokens == 6 and session.stats.decode_tokens == 9
    assert answer.ids[:6] == json.loads(child()[-1])["ids"]


def test_the_next_answer_is_its_own(session, child):
    """After a text stop string, a closed and a dropped answer."""
    answer = session.generate("abcdef", max_new_tokens=100000, stop=["cd"])
    assert "".join(answer) == "ab" and answer.finish == session.stats.finish == "stop"
    assert json.loads(child()[-1]) == {"stop": 1}
    assert "".join(session.generate("xyz", max_new_tokens=4)) == "xyzx"
    answer = session.generate("abcdef", max_new_tokens=100000)
    assert next(answer) == "a"
    answer.close()
    assert answer.finish == session.stats.finish == "stopped" and list(answer) == []
    assert "".join(session.generate("xyz", max_new_tokens=4)) == "xyzx"
    for piece in session.generate("abcdef", max_new_tokens=100000):
        assert piece == "a"
        break
    assert "".join(session.generate("xyz", max_new_tokens=4)) == "xyzx"
    old = session.generate("abcdef", max_new_tokens=100000)
    next(old)
    new = session.generate("xyz", max_new_tokens=4)
    assert old.finish == "stopped" and list(old) == [] and "".join(new) == "xyzx"
    next(old := session.generate("abcdef", max_new_tokens=100000))
    session.use("one")
    assert old.finish == "stopped" and list(old) == []


def test_requests(session, child):
    session.use("one")
    list(session.generate("a", 3, 0.5, 7, top_k=4, top_p=0.25, stop=["<|end|>", "text"]))
    asked = json.loads(child()[-1])
    assert asked.pop("ids") and asked == {
        "id": 1, "task": "one", "max_new_tokens": 3, "temperature": 0.5, "top_k": 4,
        "top_p": 0.25, "seed": 7, "lookup": False, "stop_ids": [4],
    }  # fmt: skip
    session.use(None)
    list(session.generate("a"))
    asked = json.loads(child()[-1])
    assert asked["task"] is None and asked["max_new_tokens"] == 128 and asked["stop_ids"] == []


def test_start(tiny, child, monkeypatch):
    NativeSession(tiny[0], tiny[1], check_digests=False, public_key="ab").close()
    arguments = json.loads(child()[0].split(" ", 1)[1])
    assert arguments[2:] == ["--no-digests", "--public-key", "ab"]
    assert arguments[:2] == [str(tiny[0]), str(tiny[1])]
    monkeypatch.setenv("HYDRAPACK_RUN", "/nowhere/hydrapack-run")
    with pytest.raises(NotFound, match="cannot be run"):
        NativeSession(tiny[0], tiny[1])


def test_errors_have_their_kinds(session, child):
    with pytest.raises(NotFound, match="unknown task 'nine'"):
        session.use("nine")
    assert session.task is None
    with pytest.raises(Invalid, match="top_p"):
        session.generate("a", top_p=0)
    with pytest.raises(ContextFull, match="do not fit"):
        session.generate("a" * 500)
    session.use("two")
    with pytest.raises(Mismatch, match="no such luck"):
        list(session.generate("a"))
    assert "".join(session.use(None).generate("xyz", max_new_tokens=4)) == "xyzx"
    session.use("three")
    with pytest.raises(RuntimeFailure, match=r"exit code 3.*CHECK failed somewhere"):
        list(session.generate("a"))
    with pytest.raises(RuntimeFailure):
        list(session.generate("a"))


def test_what_the_program_refuses(tiny, child, monkeypatch):
    monkeypatch.setenv("FAIL", "x.pte: no such file")
    session = NativeSession(tiny[0], tiny[1])
    with pytest.raises(HydrapackError, match=r"^x\.pte: no such file$"):
        list(session.generate("a"))
    done = hydrapack("run", tiny[1], "a", "--model", tiny[0], "--engine", "native")
    assert done.returncode == 2 and done.stderr == "hydrapack: error: x.pte: no such file\n"


def test_a_megabyte_on_standard_error(tiny, child, monkeypatch):
    """In a process of its own, which can be ended if it waits for ever."""
    script = (
        "import sys; from hydrapack.device.native import NativeSession\n"
        "with NativeSession(sys.argv[1], sys.argv[2]) as session:\n"
        "    print(''.join(session.generate('abc', max_new_tokens=4)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tiny[0], tiny[1]],
        env={**os.environ, "NOISE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "abca\n", done.stderr


def test_the_program_ends_with_its_session(tiny, child):
    def pid(number):
        return int(child()[number].split()[0])

    with NativeSession(tiny[0], tiny[1]) as session:
        assert list(session.generate("a", max_new_tokens=2))
        one = pid(0)
    assert ended(one)
    session.close()
    with pytest.raises(Invalid, match="closed"):
        session.generate("a")
    session = NativeSession(tiny[0], tiny[1])
    answer = session.generate("abc", max_new_tokens=1000000)
    next(answer)
    dropped = int(next(line for line in reversed(child()) if line[0] != "{").split()[0])
    assert dropped != one
    del session, answer
    gc.collect()
    assert ended(dropped)


def test_a_session_that_is_closed_while_it_answers(tiny, child):
    session = NativeSession(tiny[0], tiny[1])
    answer = session.generate("abc", max_new_tokens=1000000)
    next(answer)
    session.close()
    with pytest.raises(Invalid, match="closed"):
        "".join(answer)
    assert answer.finish == "stopped"


def test_a_second_thread_is_told_that_it_is_busy(session):
    inside, go_on = threading.Event(), threading.Event()
    receive = session._receive

    def slow():
        inside.set()
        assert go_on.wait(30)
        return receive()

    session._receive = slow
    answer = session.generate("abc", max_new_tokens=5)
    pieces = []
    thread = threading.Thread(target=lambda: pieces.extend(answer))
    thread.start()
    assert inside.wait(30)
    for call in (lambda: session.use("one"), lambda: session.generate("x"), lambda: next(answer)):
        with pytest.raises(Busy):
            call()
    go_on.set()
    thread.join()
    assert "".join(pieces) == "abcab"


def test_the_models_description_is_needed(tiny, child, tmp_path):
    for name in ("model.pte", "tokenizer.json"):
        shutil.copy(tiny[2] / name, tmp_path)
    with pytest.raises(NotFound, match="export-base writes it"):
        NativeSession(tmp_path / "model.pte", tiny[1])
    described = json.loads((tiny[2] / "model.pte.json").read_text())
    (tmp_path / "model.pte.json").write_text(
        json.dumps({**described, "get_tokenizer_sha256": "0" * 64})
    )
    with pytest.raises(Mismatch, match="is not the tokenizer"):
        NativeSession(tmp_path / "model.pte", tiny[1])
    NativeSession(tmp_path / "model.pte", tiny[1], check_digests=False).close()
