"""Threads, signals and forks around native calls."""

import signal
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest

from fusedlstm import _core

LONG = """
import sys
import numpy as np
from fusedlstm import _core
_core.set_num_threads({threads})
def lstm(I, H, L):
    lstm = _core.LSTM(I, H, num_layers=L)
    return lstm.pack(np.zeros(lstm.num_parameters, "float32"))
def ready():
    print("ready", flush=True)
"""
CALLS = {  # each runs for much longer than the test waits
    "lstm_forward": """
p = lstm(8, 256, 8)
x = np.zeros((1, 60_000, 8), "float32")
ready()
_core.lstm_forward(p, x)
""",
    "lstm_forward_tape": """
p = lstm(8, 256, 1)
x = np.zeros((16, 10_000, 8), "float32")
ready()
_core.lstm_forward_tape(p, x)
""",
    "lstm_backward": """
p = lstm(8, 512, 1)
x = np.zeros((1, 9_000, 8), "float32")
y, h, c, tape = _core.lstm_forward_tape(p, x)
ready()
_core.lstm_backward(p, tape, y, None, None, gradients=np.zeros(p.lstm.num_parameters, "float32"))
""",
    "generate": """
p = lstm(8, 512, 4)
output = _core.linear_pack(np.zeros((65, 512), "float32"))
d = _core.LanguageModelDecoder(p, np.zeros((65, 8), "float32"), output)
ready()
o = _core.SamplingOptions(max_new_tokens=1_000_000)
d.generate(np.zeros(1, "int32"), np.ones(1, "int32"), o, seeds=np.zeros(1, "uint64"))
""",
    "linear_cross_entropy": """
p = _core.linear_pack(np.zeros((20_000, 512), "float32"))
x = np.zeros((40_000, 512), "float32")
ready()
_core.linear_cross_entropy(p, x, np.zeros(40_000, "int32"), need_dx=True)
""",
}


def python(code, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes, **options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_within_a_second(call, threads):
    with python(LONG.format(threads=threads) + CALLS[call]) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.3)
        assert process.poll() is None, "the call was over before it could be interrupted"
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        deadline = threading.Timer(10, process.kill)  # a call that cannot be interrupted fails soon
        deadline.start()
        errors = process.communicate()[1]
        deadline.cancel()
        assert time.perf_counter() - start < 1
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert process.returncode != 0


def long_call():
    """Some tenths of a second of native work."""
    m = cases.model(I=8, H=256, L=2)
    x = np.zeros((1, 20000, 8), np.float32)
    return lambda: _core.lstm_forward(m.packed, x)


def test_another_thread_advances_during_a_call():
    call, stamps, stop = long_call(), [], threading.Event()

    def advance():
        while not stop.wait(0.002):
            stamps.append(time.perf_counter())

    other = threading.Thread(target=advance)
    other.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    stop.set()
    other.join()
    assert end - start > 0.05
    assert sum(start + 0.01 < stamp < end - 0.01 for stamp in stamps) >= 5


@pytest.mark.parametrize("count", [1, 2])
def test_several_threads_on_one_model(dtype, threads, count):
    """Python threads share packed weights; each gets the bits it gets alone."""
    threads(count)
    m = cases.model(I=5, H=37, L=2, D=2, dtype=dtype)
    batches = [cases.batch(m, N=1 + 5 * k, T=6, ragged=k % 2 == 1, seed=k) for k in range(6)]
    alone = [cases.run(m, b) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: cases.run(m, b), batches * 8))
    for k, result in enumerate(together):
        for one, other in zip(alone[k % 6].everything(), result.everything(), strict=True):
            cases.assert_same_bits(one, other)


def test_changing_the_number_of_threads_while_others_work(threads):
    m = cases.model(I=5, H=70)
    b = cases.batch(m, N=40, T=5)
    alone = cases.run(m, b)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(cases.run, m, b) for _ in range(60)]
        for count in (1, 2, 3, 1, 4, 2) * 5:
            threads(count)
            time.sleep(0.001)
        results = [future.result() for future in running]
    for result in results:
        for one, other in zip(alone.everything(), result.everything(), strict=True):
            cases.assert_same_bits(one, other)


def test_ctrl_c_in_a_child_of_another_thread():
    """The thread that forks is its child's main thread: a signal reaches its calls, whatever it was."""
    code = """
import os, signal, sys, threading
import numpy as np
from fusedlstm import _core
lstm = _core.LSTM(8, 512)
packed = lstm.pack(np.zeros(lstm.num_parameters, np.float32))
call = lambda steps: _core.lstm_forward(packed, np.zeros((1, steps, 8), np.float32))
def work():
    call(2)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        return
    events = []
    sys.setprofile(lambda frame, event, function: events.append((event, function)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        call(200_000)
    except TimeoutError:
        sys.setprofile(None)
    os._exit(("c_exception", _core.lstm_forward) not in events)  # raised by the call, not after it
def stop(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, stop)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_fork_after_use():
    """A child made by fork after native threads have run computes the same, with threads of its own."""
    code = """
import os, signal
import numpy as np
from fusedlstm import _core
_core.set_num_threads(2)
lstm = _core.LSTM(64, 128)
p = lstm.pack(np.random.default_rng(0).standard_normal(lstm.num_parameters).astype("float32"))
x = np.random.default_rng(1).standard_normal((64, 20, 64)).astype("float32")
before = _core.lstm_forward(p, x)[0]
child = os.fork()
after = _core.lstm_forward(p, x)[0]
same = before.tobytes() == after.tobytes()
if not child:
    signal.alarm(20)
    os._exit(0 if same and _core.num_threads() == 2 else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_exit_while_a_thread_works():
    """The interpreter ends cleanly while a daemon thread is inside a native call."""
    code = LONG.format(threads=2) + (
        "import threading, time\n"
        "p = lstm(8, 256, 8)\n"
        "x = np.zeros((1, 20_000, 8), 'float32')\n"
        "threading.Thread(target=_core.lstm_forward, args=(p, x), daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"FUSEDLSTM_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"FUSEDLSTM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
    ],
    ids=str,
)
def test_number_of_threads_from_the_environment(monkeypatch, environment, wanted):
    for name in ("FUSEDLSTM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with python("from fusedlstm import _core; print(_core.num_threads())") as process:
        output, errors = process.communicate()
    assert output == f"{wanted}\n", errors


def test_number_of_threads_from_the_affinity(monkeypatch):
    monkeypatch.delenv("FUSEDLSTM_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from fusedlstm import _core; print(_core.num_threads())"
    )
    with python(code) as process:
        output, errors = process.communicate()
    assert output == "1\n", errors


def test_instruction_set_from_the_environment(monkeypatch):
    for level in _core.isa_levels():
        monkeypatch.setenv("FUSEDLSTM_ISA", level)
        with python("from fusedlstm import _core; print(_core.isa())") as process:
            output, errors = process.communicate()
        assert output == f"{level}\n", errors
    monkeypatch.delenv("FUSEDLSTM_ISA")
    with python("from fusedlstm import _core; print(_core.isa() == _core.isa_levels()[-1])") as process:
        assert process.communicate()[0] == "True\n"


def test_runtime_information():
    assert set(_core.isa_levels()) <= set(_core.isa_compiled())
    assert _core.isa() in _core.isa_levels()
    assert _core.cpu_info()
    assert _core.build_info()


@pytest.mark.skipif(sys.platform != "linux", reason="affinity of threads is Linux's")
def test_workers_keep_off_the_callers_cpu():
    """Where the caller may use enough CPUs, workers have all but its own; else the same as the caller."""
    code = """
import ctypes, os
import numpy as np
from fusedlstm import _core
libc = ctypes.CDLL(None)
lstm = _core.LSTM(64, 64)
packed = lstm.pack(np.zeros(lstm.num_parameters, np.float32))
x = np.ones((36, 50, 64), np.float32)
def workers_of_a_call(threads):
    _core.set_num_threads(threads)
    _core.lstm_forward(packed, x)
    workers = [int(task) for task in os.listdir("/proc/self/task") if int(task) not in before]
    return [os.sched_getaffinity(worker) for worker in workers]
before = {int(task) for task in os.listdir("/proc/self/task")}
cpus = os.sched_getaffinity(0)
for here in sorted(cpus)[:2] * 2:
    os.sched_setaffinity(0, {here})
    assert workers_of_a_call(2) == [{here}]
    os.sched_setaffinity(0, cpus)  # and the caller stays where it is, or moves
    for _ in range(100):
        cpu = libc.sched_getcpu()
        (worker,) = workers_of_a_call(2)
        if cpu == libc.sched_getcpu():
            break
    assert worker == (cpus - {cpu} or cpus)
os.sched_setaffinity(0, {min(cpus)})
assert workers_of_a_call(3) == [{min(cpus)}] * 2
print("fine")
"""
    with python(code) as process:
        assert process.communicate(timeout=60)[0].strip() == "fine"


# one object, several threads --------------------------------------------------------------------------------


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_import_leaves_the_gil_off():
    with python("import sys, fusedlstm; fusedlstm.isa(); print(sys._is_gil_enabled())") as process:
        output, errors = process.communicate()
    assert output == "False\n", errors


@pytest.mark.parametrize("count", [1, 2])
def test_several_threads_add_to_the_same_gradients(dtype, threads, count):
    """No addition is lost: equal batches, so that their order cannot be seen."""
    threads(count)
    m = cases.model(I=40, H=96, dtype=dtype)
    b = cases.batch(m, N=8, T=10)
    weight = np.ones((30, 50), dtype)
    linear = _core.linear_pack(weight)
    x, dy = np.ones((64, 50), dtype), np.ones((64, 30), dtype)
    ids = np.zeros(5_000, np.int32)

    def add(lstm, d_weight, d_table):
        tape = _core.lstm_forward_tape(m.packed, b.x)[-1]
        _core.lstm_backward(m.packed, tape, b.dy, None, None, lstm)
        _core.linear_backward(linear, x, dy, d_weight=d_weight, need_dx=False)
        _core.embedding_backward(ids, np.ones((len(ids), 3), dtype), d_table)

    alone, together = ([m.zeros(), np.zeros_like(weight), np.zeros((2, 3), dtype)] for _ in range(2))
    for _ in range(4 * 8):
        add(*alone)
    cases.at_once(4, lambda _: [add(*together) for _ in range(8)])
    for one, other in zip(alone, together, strict=True):
        cases.assert_same_bits(one, other)


def test_a_tape_serves_one_of_several_threads():
    m = cases.model(I=5, H=16)
    b = cases.batch(m, N=3, T=4)
    alone = cases.run(m, b)
    for _ in range(20):
        tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0)[-1]
        gradients = m.zeros()
        results = cases.at_once(
            4,
            lambda _, tape=tape, to=gradients: _core.lstm_backward(
                m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=to
            ),
        )
        refused = [result for result in results if isinstance(result, RuntimeError)]
        assert len(refused) == 3
        assert all("a tape serves one backward" in str(error) for error in refused)
        cases.assert_same_bits(gradients, alone.gradients)


def test_profiles_begin_and_end_while_others_work():
    m = cases.model(I=8, H=32)
    b = cases.batch(m, N=4, T=6)
    alone = cases.run(m, b)

    def work(number):
        for _ in range(60):
            if number:
                cases.assert_same_bits(cases.run(m, b).gradients, alone.gradients)
            else:
                _core.profile_start(True)
                _core.profile_stop()

    assert cases.at_once(4, work) == [None] * 4
    with pytest.raises(RuntimeError, match="no profile is running"):
        _core.profile_stop()


def test_changing_the_instruction_set_while_others_pack():
    """What is packed keeps its own; every level computes the same bits."""
    before = _core.isa()
    m = cases.model(I=8, H=32)
    b = cases.batch(m, N=4, T=6)
    alone = cases.run(m, b)

    def work(number):
        for _ in range(40):
            if number:
                cases.assert_same_bits(cases.run(m.repack(), b).gradients, alone.gradients)
            else:
                for level in _core.isa_levels():
                    _core.set_isa(level)

    assert cases.at_once(3, work) == [None] * 3
    _core.set_isa(before)
