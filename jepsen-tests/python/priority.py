"""Priorities with the unmodified Python SDK.

Sends messages of four priorities in turn and receives half of them, prints `half` (see `middle.py`), receives
one after the other while a fault lasts, and the rest when it is over. Prints one JSON object. Exit status 0
only when every message came and the first deliveries never went from a lower priority to a higher one.
"""

import argparse
import json
import sys
import time

from middle import Middle
from rocketmq import (ClientConfiguration, Credentials, FilterExpression, Message, Producer,
                      SimpleConsumer)

KEPT_FOR_AFTER = 8


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--messages", type=int, default=64)
    parser.add_argument("--deadline-s", type=float, default=90)
    return parser.parse_args()


def main():
    args = arguments()
    deadline = time.monotonic() + args.deadline_s
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    for number in range(args.messages):
        message = Message()
        message.topic = args.topic
        message.body = str(number).encode()
        message.priority = number % 4
        producer.send(message)
    consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()}, await_duration=2)
    consumer.startup()
    middle = Middle()
    told = False
    after = 0
    attempts = {}
    first = []
    failures = []
    errors = []
    while len(attempts) < args.messages and time.monotonic() < deadline:
        if told and not middle.is_over():
            time.sleep(0.1)
            if len(attempts) >= args.messages - KEPT_FOR_AFTER:
                continue
        try:
            messages = consumer.receive(1 if told and not middle.is_over() else 8, 10)
        except Exception as error:  # while a leader is missing
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.1)
            continue
        for message in messages or []:
            number = int(message.body)
            if message.priority != number % 4:
                failures.append(f"{number}: priority {message.priority}")
            if number not in attempts:
                after += middle.is_over()
                if message.delivery_attempt == 1:
                    first.append(message.priority)
            attempts.setdefault(number, []).append(message.delivery_attempt)
            try:
                consumer.ack(message)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        if not told and len(attempts) >= args.messages // 2:
            told = True
            middle.reached()
    rises = sum(1 for before, later in zip(first, first[1:]) if later > before)
    twice = {number: tries for number, tries in attempts.items() if tries.count(1) > 1}
    result = {
        "sent": args.messages, "arrived": len(attempts), "after": after, "first_deliveries": len(first),
        "rises": rises, "redelivered": sum(len(tries) - 1 for tries in attempts.values()), "twice": twice,
        "failures": failures, "errors": errors[-3:],
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    return 0 if len(attempts) == args.messages and not (rises or twice or failures) else 1


if __name__ == "__main__":
    sys.exit(main())
