"""A push consumer of the unmodified Python SDK that fails on some messages until they are given up.

Prints `half` once the first delivery failed (see `middle.py`); second attempts end when the fault is over, but
for one. Then one JSON object: the attempts of each failing message, and what was read from the dead-letter
topic. Exit status 0 only when exactly the failing messages are there, once each, with their origin.
"""

import argparse
import json
import sys
import threading
import time

from middle import Middle
from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer)

# Less than a lease.
HOLD_S = 20


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--messages", type=int, default=20)
    parser.add_argument("--attempts", type=int, required=True)
    parser.add_argument("--deadline-s", type=float, default=90)
    return parser.parse_args()


class FailsSome(MessageListener):
    def __init__(self, middle):
        self.lock = threading.Lock()
        self.middle = middle
        self.attempts = {}
        self.succeeded = set()
        self.told = False
        self.after = 0

    def consume(self, message):
        if message.properties.get("fails") != "yes":
            with self.lock:
                self.succeeded.add(message.message_id)
            return ConsumeResult.SUCCESS
        with self.lock:
            self.attempts.setdefault(message.message_id, []).append(message.delivery_attempt)
            if not self.told:
                self.told = True
                self.middle.reached()
        # One goes its way while the fault lasts, so that it meets an attempt.
        if message.delivery_attempt == 2 and bytes(message.body) != b"body-0":
            self.middle.wait(HOLD_S)
        with self.lock:
            self.after += self.middle.is_over()
        return ConsumeResult.FAILURE


def main():
    args = arguments()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    deadline = time.monotonic() + args.deadline_s
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    expected = {}
    good = set()
    for number in range(args.messages):
        message = Message()
        message.topic = args.topic
        message.body = f"body-{number}".encode()
        message.tag = "t"
        message.keys = f"key-{number}"
        fails = number % 4 == 0
        message.add_property("fails", "yes" if fails else "no")
        message_id = producer.send(message).message_id
        if fails:
            expected[message_id] = message.body.decode()
        else:
            good.add(message_id)

    listener = FailsSome(Middle())
    consumer = PushConsumer(configuration, args.group, listener, {args.topic: FilterExpression()})
    consumer.startup()

    letters = {}
    letter_attempts = {}
    undertaker = None
    errors = []
    while len(letters) < len(expected) and time.monotonic() < deadline:
        try:
            if undertaker is None:
                topic = f"%DLQ%{args.group}"
                undertaker = SimpleConsumer(configuration, f"{args.group}-undertaker",
                                            {topic: FilterExpression()}, await_duration=2)
                undertaker.startup()
            for message in undertaker.receive(16, 30):
                letter_attempts.setdefault(message.message_id, []).append(message.delivery_attempt)
                letters[message.message_id] = {
                    "body": bytes(message.body).decode(),
                    "tag": message.tag,
                    "keys": sorted(message.keys),
                    "origin": message.properties.get("dlq.origin.topic"),
                    "origin_id": message.properties.get("dlq.origin.message-id"),
                    "attempts": message.properties.get("dlq.attempts"),
                    "reason": message.properties.get("dlq.reason"),
                }
                undertaker.ack(message)
        except Exception as error:  # the topic comes into being with the first letter
            undertaker = None
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.5)

    wrong = {
        message_id: letter for message_id, letter in letters.items()
        if letter["body"] != expected.get(message_id) or letter["origin"] != args.topic
        or letter["origin_id"] != message_id or letter["attempts"] != str(args.attempts)
        or letter["reason"] != "attempts-exhausted" or letter["tag"] != "t"
    }
    with listener.lock:
        too_often = {k: v for k, v in listener.attempts.items()
                     if max(v) > args.attempts or any(v.count(attempt) > 1 for attempt in v)}
        attempts = dict(listener.attempts)
        succeeded = set(listener.succeeded)
    repeated = {key: tries for key, tries in letter_attempts.items() if tries.count(1) > 1}
    print(json.dumps({
        "after": listener.after, "expected": len(expected), "letters": len(letters), "wrong": wrong,
        "repeated": repeated, "too_often": too_often, "attempts": list(attempts.values()),
        "missing": sorted(set(expected) - set(letters)), "not_consumed": sorted(good - succeeded),
        "errors": errors[-3:],
    }), flush=True)
    consumer.shutdown()
    producer.shutdown()
    fine = (set(letters) == set(expected) and not wrong and not too_often and succeeded == good
            and not repeated)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
