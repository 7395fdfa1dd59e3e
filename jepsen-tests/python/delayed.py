"""Delayed messages and recall with the unmodified Python SDK.

Sends messages to be delivered in a few seconds and recalls some. Prints `half` when all are stored and a
consumer waits (see `middle.py`); from then on it recalls one far message after the other, the last ones when
the fault is over. Then one JSON object: how late each came, and what should not have come. Exit status 0 only
when every message that was not recalled came once, none came early, and none that was recalled came.
"""

import argparse
import json
import sys
import threading
import time

from middle import Middle
from rocketmq import (ClientConfiguration, Credentials, FilterExpression, Message, Producer,
                      SimpleConsumer)

RECALLED_IN_THE_MIDDLE = 12
RECALLED_AFTER = 4


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--messages", type=int, default=60)
    parser.add_argument("--from-ms", type=int, default=4000)
    parser.add_argument("--far-ms", type=int, default=6000)
    parser.add_argument("--deadline-s", type=float, default=90)
    return parser.parse_args()


class Recalls:
    """Recalls far messages while the fault lasts. Each recall either wins, and the message never comes, or
    comes too late for a message that does."""

    def __init__(self, args, producer, middle, handles, deadline):
        self.won = set()
        self.too_late = {}
        self.won_after = 0
        self.thread = threading.Thread(
            target=self.run, args=(args, producer, middle, handles, deadline), daemon=True)

    def run(self, args, producer, middle, handles, deadline):
        for number, (message_id, handle, due) in enumerate(handles):
            if number >= len(handles) - RECALLED_AFTER:
                middle.wait(deadline - time.monotonic())
            after = middle.is_over()
            while time.monotonic() < deadline:
                try:
                    answered = producer.recall_message(args.topic, handle)
                    assert answered == message_id, f"{answered} instead of {message_id}"
                    self.won.add(message_id)
                    self.won_after += after
                    break
                except Exception as error:
                    self.too_late[message_id] = f"{type(error).__name__}: {error}"
                    # It fired for sure: a repeat would be told the same.
                    if time.time() * 1000 > due + 1000:
                        break
                    time.sleep(0.1)
            if not middle.is_over():
                time.sleep(0.1)


def main():
    args = arguments()
    deadline = time.monotonic() + args.deadline_s
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    due = {}
    recalled = set()
    failures = []

    def send(body, ahead_ms):
        message = Message()
        message.topic = args.topic
        message.body = body.encode()
        # This SDK takes seconds.
        message.delivery_timestamp = (int(time.time() * 1000) + ahead_ms) // 1000
        receipt = producer.send(message)
        due[receipt.message_id] = message.delivery_timestamp * 1000
        if not receipt.recall_handle:
            failures.append(f"{body}: no recall handle")
        return receipt

    for number in range(args.messages):
        receipt = send(f"body-{number}", args.from_ms + (number % 10) * 200)
        if number % 3 == 0:
            answered = producer.recall_message(args.topic, receipt.recall_handle)
            again = producer.recall_message(args.topic, receipt.recall_handle)
            if answered != receipt.message_id or again != receipt.message_id:
                failures.append(f"{number}: recall answered {answered} and {again}")
            recalled.add(receipt.message_id)
    past = Message()
    past.topic = args.topic
    past.body = b"past"
    past.delivery_timestamp = int(time.time()) - 10
    due[producer.send(past).message_id] = 0
    try:
        producer.recall_message(args.topic, "no handle")
        failures.append("a recall of nothing was answered OK")
    except Exception:  # the SDK raises its own types for each code
        pass
    receipts = [send(f"far-{number}", args.far_ms) for number in range(RECALLED_IN_THE_MIDDLE)]
    handles = [(receipt.message_id, receipt.recall_handle, due[receipt.message_id]) for receipt in receipts]

    consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()}, await_duration=2)
    consumer.startup()
    middle = Middle()
    recalls = Recalls(args, producer, middle, handles, deadline)
    middle.reached()
    recalls.thread.start()
    arrived = {}
    attempts = {}
    errors = []
    quiet_until = None
    while time.monotonic() < deadline:
        try:
            messages = consumer.receive(16, 15)
        except Exception as error:  # while a leader is missing
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.1)
            continue
        now_ms = time.time() * 1000
        for message in messages or []:
            arrived.setdefault(message.message_id, now_ms)
            attempts.setdefault(message.message_id, []).append(message.delivery_attempt)
            try:
                consumer.ack(message)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        if not recalls.thread.is_alive() and set(arrived) >= set(due) - recalled - recalls.won:
            # Long enough for a recalled one to turn up.
            last_due = max(due.values()) / 1000
            quiet_until = quiet_until or max(time.time(), last_due) + 1.5
            if time.time() >= quiet_until:
                break
    expected = set(due) - recalled - recalls.won
    late_ms = sorted(arrived[key] - due[key] for key in expected & set(arrived) if due[key])
    early = [late for late in late_ms if late < 0]
    unexpected = sorted(set(arrived) - expected)
    twice = {key: tries for key, tries in attempts.items() if tries.count(1) > 1}
    result = {
        "sent": len(due), "recalled": len(recalled) + len(recalls.won), "after": recalls.won_after,
        "recalled_in_the_middle": len(recalls.won), "arrived": len(arrived),
        "missing": sorted(expected - set(arrived)), "unexpected": unexpected, "early": early,
        "late_ms_median": round(late_ms[len(late_ms) // 2]) if late_ms else None,
        "late_ms_max": round(late_ms[-1]) if late_ms else None,
        "redelivered": sum(len(tries) - 1 for tries in attempts.values()),
        "twice": twice, "failures": failures, "errors": errors[-3:],
        "too_late": {key: why for key, why in recalls.too_late.items() if key not in recalls.won},
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    fine = not (result["missing"] or unexpected or early or failures or twice) and late_ms
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
