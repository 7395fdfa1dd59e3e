"""Tag and SQL92 filters with the unmodified Python SDK: what matches arrives, once; the rest never does; a
bad expression is refused.

Prints `half` when half of the messages are sent and some have come (see `middle.py`), goes on sending, and
then prints one JSON object. Exit status 0 only when everything was as it must be.
"""

import argparse
import json
import sys
import threading
import time

from middle import Middle
from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer)
from rocketmq.grpc_protocol import FilterType

SQL = "(region = 'eu' OR region IS NULL) AND amount BETWEEN 10 AND 49 AND TAGS <> 'test'"
TAGS = "live || Aa"
# "Aa" and "BB" have the same hash, and that is all an index of tags knows.
TAG_OF = ("test", "live", "Aa", "BB", None)
AMOUNTS = 60
KEPT_FOR_AFTER = 20


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--filter", choices=["tag", "sql"], required=True)
    parser.add_argument("--consumer", choices=["simple", "push"], required=True)
    parser.add_argument("--messages", type=int, default=120)
    parser.add_argument("--deadline-s", type=float, default=90)
    return parser.parse_args()


def make_message(topic, number):
    message = Message()
    message.topic = topic
    message.body = str(number).encode()
    tag = TAG_OF[number % 5]
    if tag is not None:
        message.tag = tag
    region = ["eu", "us", None][number % 3]
    if region is not None:
        message.add_property("region", region)
    message.add_property("amount", str(number % AMOUNTS))
    return message


def is_wanted(kind, number):
    tag = TAG_OF[number % 5]
    if kind == "tag":
        return tag in ("live", "Aa")
    return number % 3 != 1 and 10 <= number % AMOUNTS <= 49 and tag not in ("test", None)


class Listener(MessageListener):
    def __init__(self, middle):
        self.lock = threading.Condition()
        self.middle = middle
        self.attempts = {}
        self.after = 0

    def consume(self, message):
        with self.lock:
            number = int(bytes(message.body))
            if number not in self.attempts and self.middle.is_over():
                self.after += 1
            self.attempts.setdefault(number, []).append(message.delivery_attempt)
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


def send(args, producer, middle, listener, sent, unsure, deadline):
    """The second half is sent slowly, so that a fault meets sends; its end waits until that is over."""
    for number in range(args.messages):
        if number == args.messages // 2:
            with listener.lock:
                listener.lock.wait_for(lambda: listener.attempts, deadline - time.monotonic())
            middle.reached()
        if number >= args.messages // 2 and not middle.is_over():
            time.sleep(0.05)
        if number == args.messages - KEPT_FOR_AFTER:
            middle.wait(deadline - time.monotonic())
        try:
            producer.send(make_message(args.topic, number))
            sent.add(number)
        except Exception as error:  # it may be stored all the same
            unsure[number] = f"{type(error).__name__}: {error}"


def main():
    args = arguments()
    deadline = time.monotonic() + args.deadline_s
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    if args.filter == "sql":
        subscription = {args.topic: FilterExpression(SQL, FilterType.SQL)}
    else:
        subscription = {args.topic: FilterExpression(TAGS)}
    middle = Middle()
    listener = Listener(middle)
    if args.consumer == "push":
        consumer = PushConsumer(configuration, args.group, listener, subscription)
    else:
        consumer = SimpleConsumer(configuration, args.group, subscription, await_duration=2)
    consumer.startup()
    sent, unsure = set(), {}
    sender = threading.Thread(target=send,
                              args=(args, producer, middle, listener, sent, unsure, deadline), daemon=True)
    sender.start()

    def all_came():
        return not sender.is_alive() and all(
            number in listener.attempts for number in sent if is_wanted(args.filter, number))

    errors = []
    # After the last wanted message comes one more receive, which must bring nothing.
    empty = 0
    while time.monotonic() < deadline and empty == 0:
        if args.consumer == "push":
            with listener.lock:
                listener.lock.wait(1)
                empty += all_came()
            continue
        try:
            messages = consumer.receive(16, 15)
        except Exception as error:  # while a leader is missing
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.1)
            continue
        for message in messages or []:
            listener.consume(message)
            try:
                consumer.ack(message)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        empty += not messages and all_came()
    told = refusals(args, configuration) if args.filter == "sql" else {}
    wanted = {number for number in sent if is_wanted(args.filter, number)}
    came = dict(listener.attempts)
    result = {
        "wanted": len(wanted),
        "received": len(came),
        "after": listener.after,
        "redelivered": sum(len(attempts) - 1 for attempts in came.values()),
        "missing": sorted(wanted - set(came)),
        "unwanted": sorted(number for number in came if not is_wanted(args.filter, number)),
        "twice": {number: attempts for number, attempts in came.items() if attempts.count(1) > 1},
        "unsure": unsure,
        "errors": errors[-3:],
        "refusals": told,
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    good = (wanted and not (result["missing"] or result["unwanted"] or result["twice"])
            and all("40010" in said or "ILLEGAL_FILTER" in said or "column" in said
                    for said in told.values()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
