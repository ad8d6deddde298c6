# SPDX-License-Identifier: Apache-2.0
"""Two machines with a bad network between them. The machines are network namespaces; the result must not show it.

  lossy         a tenth of all packets is lost, each way, and the others take 20 ms
  cut           the link is lost in the middle: both sides end in time and name the other, and go on when it is back
  late_name     rank 1 is there first, and the name of rank 0 does not resolve for some seconds
  silent_name_server  nobody answers who has an address, and nobody needs to know
"""

import functools
import re
import sys
import time

import harness
import nodes
import ranks
from harness import named, require
from nodes import Node, Wire
from ranks import UNAVAILABLE, Ranks, Start, command

SKIPPED = 77  # as CMakeLists.txt says
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PEER_TIMEOUT, LONGEST = 5, 25  # seconds; from the cut to the end of the last rank
OPTIONS = {"max_steps": 40, "gradient_accumulation_steps": 2, "verify_saved_model": False, "ddp_timeout": 40,
           "validation_split_percentage": 20, "eval_strategy": "steps", "eval_steps": harness.EVAL_STEPS}
SHORT = OPTIONS | {"max_steps": 12}


def machines(place):
    return [Node(address, place / address) for address in ADDRESSES]


def start_on(pair, host=ADDRESSES[0]):
    """One rank a node; rank 0 is reached as `host`."""
    def environment(rank, size, port):
        return ranks.plain(rank, size, port) | {"MASTER_ADDR": host}
    return Start(len(pair), environment=environment, prefix=lambda rank: pair[rank].prefix)


@functools.cache
def reference(workplace, steps):
    """The output folder of two ranks on one machine."""
    place = workplace.new("reference")
    return ranks.train(command(place / "out", **OPTIONS | {"max_steps": steps}), place, 2)


def lossy(workplace, summary, random):
    """A tenth of the packets lost and 20 ms of delay: slower, and the same bytes."""
    place = workplace.new("lossy")
    pair = machines(place)
    with Wire(pair, loss=0.1, delay=0.02, seed=random.random()) as wire:
        began = time.monotonic()
        outcomes = ranks.run(command(place / "out", **SHORT), place, start_on(pair))
        ranks.require_same(reference(workplace, SHORT["max_steps"]), place / "out", outcomes)
        print(f"  {wire.lost} packets of {wire.lost + wire.carried} lost, {time.monotonic() - began:.1f} s", flush=True)
        require(wire.lost >= 50, f"only {wire.lost} packets of {wire.lost + wire.carried} were lost")
    summary.count("runs over a lossy network with the same bytes")


def interface_down(number):
    """The interface of one machine: it is told, the other hears nothing any more."""
    def cut(pair, wire):
        pair[number].link("down")
        return lambda: pair[number].link("up")
    cut.__name__ = f"interface of rank {number} down"
    return cut


def silence(_, wire):
    """Somewhere between them: both hear nothing any more."""
    before, wire.loss = wire.loss, 1.0

    def undo():
        wire.loss = before
    return undo


def in_step(running):
    return running.wait_for_step(7)


def in_evaluation(running):
    return running.main.wait_for(lambda: f"step {harness.EVAL_STEPS}/" in running.main.log)


def in_setup(running):
    return running.main.wait_for(lambda: harness.PLANNED.search(running.main.log))


def check_cut(what, outcomes, seconds, running):
    """Both end with 69, in time, and each names the other."""
    for rank, outcome in outcomes.items():
        message = ranks.last_words(outcome)
        require(outcome.code == UNAVAILABLE, f"{what}: rank {rank} ended with {named(outcome.code)}\n{running.log}")
        ranks.require_one_line(rank, outcome)
        pid = running.processes[1 - rank].pid
        require(re.match(rf"rank {1 - rank} \(host \S+, pid {pid}\) (has not answered|is gone)", message),
                f"{what}: rank {rank} says: {message}\n{running.log}")
        print(f"  {what}: rank {rank} after {outcome.seconds:.1f} s of its life: {message}", flush=True)
    require(seconds <= LONGEST, f"{what}: the last one ended after {seconds:.1f} s\n{running.log}")


def cut(workplace, summary, _):
    """Both sides end within the bound and name the other; the same command goes on when the link is back."""
    options = OPTIONS | {"peer_timeout": PEER_TIMEOUT}
    reference(workplace, OPTIONS["max_steps"])
    cases = [(interface_down(0), in_step), (interface_down(1), in_step), (silence, in_step), (silence, in_evaluation),
             (silence, in_setup)]

    def check(case):
        break_link, wait = case
        what = f"{break_link.__name__} {wait.__name__.replace('_', ' ')}"
        place = workplace.new("cut")
        pair = machines(place)
        start = start_on(pair)
        with Wire(pair, delay=0.002) as wire:
            with Ranks(command(place / "out", **options), place, start) as running:
                require(wait(running), f"{what}: it ended before\n{running.log}")
                undo = break_link(pair, wire)
                began = time.monotonic()
                outcomes = running.finish(LONGEST + 30)
                check_cut(what, outcomes, time.monotonic() - began, running)
            done, whole = outcomes[0].last_step, harness.whole_checkpoints(place / "out")
            require(done is None or whole[-1:] == [done], f"{what}: rank 0 had done step {done}, and {whole} are whole")
            undo()
            again = ranks.run(command(place / "out", **options), place, start)
            require(again[0].resumed == (done or 0), f"{what}: it went on from {again[0].resumed}, not {done}", again[0])
            ranks.require_same(reference(workplace, OPTIONS["max_steps"]), place / "out", again)
        summary.count(f"{what}: named in time, and continued")
    harness.side_by_side(cases, check, summary)


def late_name(workplace, summary, _):
    """Rank 1 is started first; the name of rank 0 comes into being five seconds later."""
    place = workplace.new("name")
    pair = machines(place)
    host = "trainer-node-0"
    with Wire(pair) as wire:
        start = start_on(pair, host)
        start.absent = (0,)
        with Ranks(command(place / "out", **SHORT), place, start) as running:
            require(not running.processes[1].ended(2.5), f"rank 1 did not wait\n{running.log}")
            running.launch(0)
            require(not running.processes[1].ended(2.5), f"rank 1 did not wait\n{running.log}")
            for node in pair:
                node.hosts.write_text(f"127.0.0.1 localhost\n{ADDRESSES[0]} {host}\n")
            ranks.require_same(reference(workplace, SHORT["max_steps"]), place / "out", running.finish())
        require(wire.carried > 100, f"only {wire.carried} packets went over the wire")
    summary.count("runs whose name came late")


def silent_name_server(workplace, summary, _):
    """A name server that never answers: a run whose address is a number does not ask it."""
    place = workplace.new("silent")
    pair = machines(place)
    for node in pair:
        node.resolver.write_text("nameserver 10.77.0.99\n")
    with Wire(pair):
        options = SHORT | {"peer_timeout": PEER_TIMEOUT, "ddp_timeout": 8}  # one question takes ten
        outcomes = ranks.run(command(place / "out", **options), place, start_on(pair))
        ranks.require_same(reference(workplace, SHORT["max_steps"]), place / "out", outcomes)
    summary.count("runs with a silent name server")


def main():
    missing = nodes.missing_tools()
    if missing:
        print(f"{', '.join(missing)} is absent: tools/setup.sh test")
        return 1
    reason = nodes.enter_namespace()
    if reason:
        print(f"skipped: this user may not make network namespaces with a wire between them: {reason}")
        return SKIPPED
    return harness.main("network", [lossy, cut, late_name, silent_name_server])


if __name__ == "__main__":
    sys.exit(main())
