"""Sends messages with the unmodified Python SDK and receives them again.

Prints one JSON object: what was sent, what arrived, and every difference. Exit status 0 only when
all messages arrived equal.
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
    parser.add_argument("--consumer", choices=["simple", "push"], required=True)
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


def make_message(topic, number):
    message = Message()
    message.topic = topic
    # Every byte value, and sizes from one byte to beyond an HTTP/2 frame.
    message.body = bytes((number + i) % 256 for i in range(1 + (number % 7) * 5000))
    message.tag = f"tag-{number % 3}"
    message.keys = f"key-{number}"
    message.keys = f"order-{number * 31}"
    message.add_property("number", str(number))
    message.add_property("text", "Grüße €uro 漢字")
    return message


def describe(message):
    return {
        "body": bytes(message.body).hex(),
        "tag": message.tag,
        "keys": sorted(message.keys),
        "properties": dict(sorted(message.properties.items())),
        "topic": message.topic,
    }


class Arrivals:
    """What came in, by message id; ready to be waited on."""

    def __init__(self, expected):
        self.lock = threading.Condition()
        self.expected = expected
        self.by_id = {}
        self.duplicates = []
        self.attempts = []

    def add(self, message):
        with self.lock:
            if message.message_id in self.by_id:
                self.duplicates.append(message.message_id)
            self.by_id[message.message_id] = describe(message)
            self.attempts.append(message.delivery_attempt)
            self.lock.notify_all()

    def wait(self, deadline):
        with self.lock:
            while len(self.by_id) < self.expected and time.monotonic() < deadline:
                self.lock.wait(0.2)


class Listener(MessageListener):
    def __init__(self, arrivals):
        self.arrivals = arrivals

    def consume(self, message):
        self.arrivals.add(message)
        return ConsumeResult.SUCCESS


def main():
    args = arguments()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    arrivals = Arrivals(args.messages)
    deadline = time.monotonic() + args.deadline_s

    producer = Producer(configuration, (args.topic,), tls_enable=args.tls)
    producer.startup()

    if args.consumer == "push":
        consumer = PushConsumer(configuration, args.group, Listener(arrivals),
                                {args.topic: FilterExpression()}, tls_enable=args.tls)
    else:
        consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()},
                                  await_duration=5, tls_enable=args.tls)
    consumer.startup()

    sent = {}
    send_failures = []
    for number in range(args.messages):
        message = make_message(args.topic, number)
        try:
            receipt = producer.send(message)
            sent[receipt.message_id] = describe(message)
        except Exception as error:  # every failure of the SDK counts, whatever its type
            send_failures.append(f"{type(error).__name__}: {error}")

    receive_failures = []
    if args.consumer == "push":
        arrivals.wait(deadline)
    else:
        while len(arrivals.by_id) < len(sent) and time.monotonic() < deadline:
            try:
                for message in consumer.receive(16, 30):
                    arrivals.add(message)
                    consumer.ack(message)
            except Exception as error:
                receive_failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)

    differences = [
        {"message_id": message_id, "sent": content, "received": arrivals.by_id.get(message_id)}
        for message_id, content in sent.items() if arrivals.by_id.get(message_id) != content
    ]
    unknown = [message_id for message_id in arrivals.by_id if message_id not in sent]
    result = {
        "sent": len(sent),
        "received": len(arrivals.by_id),
        "send_failures": send_failures,
        "receive_failures": receive_failures,
        "duplicates": arrivals.duplicates,
        "unknown": unknown,
        "differences": differences[:3],
        "attempts_above_one": sum(1 for attempt in arrivals.attempts if attempt != 1),
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    good = (len(sent) == args.messages and not differences and not unknown
            and not send_failures and not arrivals.duplicates)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
