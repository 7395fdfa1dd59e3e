"""SQL92 filters with the unmodified Python SDK: what matches arrives, once; the rest never does; a
bad expression is refused.

Prints one JSON object. Exit status 0 only when everything was as it must be.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer)
from rocketmq.grpc_protocol import FilterType

EXPRESSION = "(region = 'eu' OR region IS NULL) AND amount BETWEEN 10 AND 59 AND TAGS <> 'test'"


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--consumer", choices=["simple", "push"], required=True)
    parser.add_argument("--messages", type=int, default=120)
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


def make_message(topic, number):
    message = Message()
    message.topic = topic
    message.body = str(number).encode()
    message.tag = "test" if number % 5 == 0 else "live"
    region = ["eu", "us", None][number % 3]
    if region is not None:
        message.add_property("region", region)
    message.add_property("amount", str(number))
    return message


def is_wanted(number):
    return number % 3 != 1 and 10 <= number <= 59 and number % 5 != 0


class Listener(MessageListener):
    def __init__(self):
        self.lock = threading.Condition()
        self.numbers = []

    def consume(self, message):
        with self.lock:
            self.numbers.append(int(bytes(message.body)))
            self.lock.notify_all()
        return ConsumeResult.SUCCESS


def refusals(args, configuration):
    """What the SDK is told about expressions that are wrong."""
    told = {}
    for expression in ["amount >", "abs(amount) > 1"]:
        consumer = SimpleConsumer(configuration, args.group + "-bad",
                                  {args.topic: FilterExpression(expression, FilterType.SQL)},
                                  await_duration=2)
        try:
            consumer.startup()
            told[expression] = f"received {consumer.receive(4, 15)}"
        except Exception as error:
            told[expression] = f"{type(error).__name__}: {error}"
        finally:
            try:
                consumer.shutdown()
            except Exception:
                pass
    return told


def main():
    args = arguments()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    subscription = {args.topic: FilterExpression(EXPRESSION, FilterType.SQL)}
    listener = Listener()
    if args.consumer == "push":
        consumer = PushConsumer(configuration, args.group, listener, subscription)
    else:
        consumer = SimpleConsumer(configuration, args.group, subscription, await_duration=5)
    consumer.startup()

    for number in range(args.messages):
        producer.send(make_message(args.topic, number))
    wanted = sorted(number for number in range(args.messages) if is_wanted(number))

    deadline = time.monotonic() + args.deadline_s
    # After the last wanted message comes one more receive, which must bring nothing.
    empty = 0
    while time.monotonic() < deadline and (len(listener.numbers) < len(wanted) or empty == 0):
        if args.consumer == "push":
            with listener.lock:
                listener.lock.wait_for(lambda: len(listener.numbers) >= len(wanted), 1)
            empty += len(listener.numbers) >= len(wanted)
            continue
        try:
            messages = consumer.receive(16, 30)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            continue
        for message in messages:
            listener.consume(message)
            consumer.ack(message)
        empty += not messages
    told = refusals(args, configuration)
    result = {
        "wanted": len(wanted),
        "received": len(listener.numbers),
        "missing": sorted(set(wanted) - set(listener.numbers)),
        "unwanted": sorted(set(listener.numbers) - set(wanted)),
        "refusals": told,
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    good = (sorted(listener.numbers) == wanted
            and all("40010" in said or "ILLEGAL_FILTER" in said or "column" in said
                    for said in told.values()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
