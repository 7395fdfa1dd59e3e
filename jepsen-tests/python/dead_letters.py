"""A push consumer of the unmodified Python SDK that fails on some messages until they are given up.

Prints the word `failing` once the first delivery failed, so that a fault can be brought in, and then
one JSON object: the attempts of each failing message, and what was read from the dead-letter topic.
Exit status 0 only when exactly the failing messages are there, with their origin.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer)


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
    def __init__(self):
        self.lock = threading.Lock()
        self.attempts = {}
        self.succeeded = set()
        self.told = False

    def consume(self, message):
        with self.lock:
            if message.properties.get("fails") != "yes":
                self.succeeded.add(message.message_id)
                return ConsumeResult.SUCCESS
            self.attempts.setdefault(message.message_id, []).append(message.delivery_attempt)
            if not self.told:
                self.told = True
                print("failing", flush=True)
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

    listener = FailsSome()
    consumer = PushConsumer(configuration, args.group, listener, {args.topic: FilterExpression()})
    consumer.startup()

    letters = {}
    repeated = []
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
                if message.message_id in letters:
                    repeated.append(message.message_id)
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
        too_often = {k: v for k, v in listener.attempts.items() if max(v) > args.attempts}
        attempts = dict(listener.attempts)
        succeeded = set(listener.succeeded)
    print(json.dumps({
        "expected": len(expected), "letters": len(letters), "wrong": wrong, "repeated": repeated,
        "too_often": too_often, "attempts": list(attempts.values()),
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
