"""Priorities with the unmodified Python SDK.

Sends messages of four priorities in turn, receives half of them, prints `half`, so that a fault can be
brought in, and receives the rest while it lasts. Prints one JSON object. Exit status 0 only when every
message came and the first deliveries never went from a lower priority to a higher one.
"""

import argparse
import json
import sys
import time

from rocketmq import (ClientConfiguration, Credentials, FilterExpression, Message, Producer,
                      SimpleConsumer)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--messages", type=int, default=64)
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


def main():
    args = arguments()
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
    arrived = {}
    first = []
    failures = []
    errors = []
    told = False
    deadline = time.monotonic() + args.deadline_s
    while len(arrived) < args.messages and time.monotonic() < deadline:
        try:
            messages = consumer.receive(8, 10)
        except Exception as error:  # while a leader is missing
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.2)
            continue
        for message in messages or []:
            number = int(message.body)
            if message.priority != number % 4:
                failures.append(f"{number}: priority {message.priority}")
            if message.delivery_attempt == 1 and number not in arrived:
                first.append(message.priority)
            arrived[number] = message.delivery_attempt
            try:
                consumer.ack(message)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        if not told and len(arrived) >= args.messages // 2:
            told = True
            print("half", flush=True)
    rises = sum(1 for before, after in zip(first, first[1:]) if after > before)
    result = {
        "sent": args.messages, "arrived": len(arrived), "first_deliveries": len(first), "rises": rises,
        "failures": failures, "errors": errors[-3:],
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    return 0 if len(arrived) == args.messages and not rises and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
