"""Lite topics with the unmodified Python SDK.

A lite consumer subscribes to some lite topics; a producer sends to these and to others. Prints `half`
after half of the messages (see `middle.py`) and sends the last ones when the fault is over. Then the consumer
leaves one lite topic, and with `--exclusive` a second consumer takes another one over. Prints one JSON object.
Exit status 0 only when every message of what was subscribed to came, in order per lite topic, and nothing else
did.
"""

import argparse
import json
import sys
import threading
import time

from middle import Middle
from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, LitePushConsumer,
                      LiteSimpleConsumer, Message, MessageListener, Producer)

READ = ("alpha", "beta", "gamma", "delta")
OTHERS = ("epsilon", "zeta")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--consumer", choices=("simple", "push"), required=True)
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument("--messages", type=int, default=6)
    parser.add_argument("--deadline-s", type=float, default=90)
    return parser.parse_args()


class Seen(MessageListener):
    """What came, in its order; fed by the push consumer or by a thread that receives."""

    def __init__(self):
        self.lock = threading.Lock()
        self.by_lite = {}
        self.failures = []
        self.errors = []
        self.ids = set()
        self.redelivered = 0

    def consume(self, message):
        name, number = message.body.decode().split("|")
        with self.lock:
            if message.lite_topic != name:
                self.failures.append(f"{name}|{number} came with lite_topic {message.lite_topic}")
            seen = self.by_lite.setdefault(name, [])
            number = int(number)
            if message.message_id in self.ids:
                self.redelivered += 1
                if message.delivery_attempt <= 1:
                    self.failures.append(f"{name}|{number} came twice as a first delivery")
            self.ids.add(message.message_id)
            if number not in seen:
                if seen and number < seen[-1]:
                    self.failures.append(f"{name}|{number} after {seen[-1]}")
                seen.append(number)
        return ConsumeResult.SUCCESS

    def has(self, name, number):
        with self.lock:
            return number in self.by_lite.get(name, [])


def start(args, configuration, kind, seen):
    if kind == "push":
        consumer = LitePushConsumer(configuration, args.group, args.topic, seen)
        consumer.startup()
        return consumer, lambda: None
    consumer = LiteSimpleConsumer(args.topic, configuration, args.group, await_duration=2)
    consumer.startup()
    ends = threading.Event()

    def receive():
        while not ends.is_set():
            try:
                for message in consumer.receive(8, 10) or []:
                    seen.consume(message)
                    consumer.ack(message)
            except Exception as error:  # while a leader is missing
                seen.errors.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()

    def stop():
        ends.set()
        thread.join(10)

    return consumer, stop


def insist(what, deadline):
    """The quota comes with the settings, and a leader may be missing."""
    while True:
        try:
            return what()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main():
    args = arguments()
    deadline = time.monotonic() + args.deadline_s
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    seen = Seen()
    consumer, stop = start(args, configuration, args.consumer, seen)
    for name in READ:
        insist(lambda name=name: consumer.subscribe_lite(name), deadline)

    def send(name, number):
        message = Message()
        message.topic = args.topic
        message.lite_topic = name
        message.body = f"{name}|{number}".encode()
        insist(lambda: producer.send(message), deadline)

    def wait_for(seen, names, number):
        while not all(seen.has(name, number) for name in names) and time.monotonic() < deadline:
            time.sleep(0.05)

    middle = Middle()
    after = 0
    for number in range(args.messages):
        if number == args.messages - 1:
            middle.wait(deadline - time.monotonic())
        for name in READ + OTHERS:
            after += middle.is_over()
            send(name, number)
        if number == args.messages // 2:
            middle.reached()
    wait_for(seen, READ, args.messages - 1)

    last = args.messages
    insist(lambda: consumer.unsubscribe_lite("delta"), deadline)
    taker_seen = Seen()
    taker = None
    read = [name for name in READ if name != "delta"]
    if args.exclusive:
        taker, stop_taker = start(args, configuration, "simple", taker_seen)
        insist(lambda: taker.subscribe_lite("alpha"), deadline)
        read.remove("alpha")
    for name in READ:
        send(name, last)
    wait_for(seen, read, last)
    if taker:
        wait_for(taker_seen, ["alpha"], last)
    time.sleep(1.5)  # for what should not come

    failures = list(seen.failures) + list(taker_seen.failures)
    for name in READ:
        upto = last + 1 if name in read else last
        if seen.by_lite.get(name) != list(range(upto)):
            failures.append(f"{name}: {seen.by_lite.get(name)}")
    failures += [f"not subscribed: {name}" for name in seen.by_lite if name not in READ]
    if taker and taker_seen.by_lite != {"alpha": [last]}:
        failures.append(f"the one that took over has {taker_seen.by_lite}")
    result = {"arrived": {name: len(got) for name, got in seen.by_lite.items()}, "failures": failures,
              "after": after, "redelivered": seen.redelivered, "errors": seen.errors[-3:]}
    print(json.dumps(result), flush=True)
    stop()
    if taker:
        stop_taker()
        taker.shutdown()
    consumer.shutdown()
    producer.shutdown()
    return 0 if not failures else 1


if __name__ == "__main__":
    sys.exit(main())
