"""One client of a run by the unmodified Python SDK (rocketmq-python-client), until its input ends.

Prints its part of the history, one event a line, as `ledgermq chaos client` does. The SDK does not say
where a message lies, so its deliveries name no queue. A send that raised may have been stored.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, Credentials, FilterExpression, Message, Producer, SimpleConsumer,
                      TransactionChecker, TransactionResolution)

RECEIVE_BATCH = 32
# Of one producer: several, so that one that is held does not stop it.
MESSAGE_GROUPS = 4
AFTER_ERROR_S = 0.05


class History:
    """Prints events, and gives processes their numbers."""

    def __init__(self, args):
        self.began_ns = args.began_ns
        self.next_process = args.first_process
        self.lock = threading.Lock()

    def process(self):
        with self.lock:
            self.next_process += 1
            return self.next_process - 1

    def event(self, process, kind, operation):
        with self.lock:
            now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self.began_ns
            print(json.dumps({"t": now_ns, "p": process, "k": kind, "op": operation}), flush=True)


class Record:
    """What one process of the history does, one operation after the other."""

    def __init__(self, history):
        self.history = history
        self.process = history.process()

    def event(self, kind, operation):
        self.history.event(self.process, kind, operation)

    def unknown(self, operation, error):
        self.event("info", operation)
        self.process = self.history.process()
        print(f"{operation['f']}: {type(error).__name__}: {error}", file=sys.stderr)
        time.sleep(AFTER_ERROR_S)


class Checker(TransactionChecker):
    """What the SDK does with the answer is not told, so it is unknown whether it was heard."""

    def __init__(self, history):
        self.history = history

    def check(self, message):
        number = number_in(message)
        process, asked = self.history.process(), {"f": "end", "number": number, "commit": commits(number)}
        self.history.event(process, "invoke", asked)
        self.history.event(process, "info", asked)
        return TransactionResolution.COMMIT if commits(number) else TransactionResolution.ROLLBACK


# As `transactions.rs` has it, but nobody dies here: the halves of those that would are told their outcome.
def commits(number):
    return number % 10 not in (1, 2, 3) and number % 20 != 14


def is_left_open(number):
    return number % 10 in (0, 1)


def number_in(message):
    return int.from_bytes(bytes(message.body)[:8], "big")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["producer", "consumer"], required=True)
    parser.add_argument("--workload", choices=["queue", "fifo", "transactions"], required=True)
    for name in ["--points", "--topic", "--group"]:
        parser.add_argument(name, required=True)
    for name in ["--began-ns", "--first-process", "--first-number", "--pause-us", "--body-bytes", "--lease-s"]:
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


def produce(args, history, stop):
    is_transactional = args.workload == "transactions"
    checker = Checker(history) if is_transactional else None
    producer = Producer(ClientConfiguration(args.points, Credentials()), (args.topic,), checker=checker)
    producer.startup()
    record = Record(history)
    number = args.first_number
    while not stop.is_set():
        message = Message()
        message.topic = args.topic
        message.body = number.to_bytes(8, "big").ljust(args.body_bytes, b".")
        asked = {"f": "send", "number": number}
        if args.workload == "fifo":
            message.message_group = f"{args.first_process}-{number % MESSAGE_GROUPS}"
            asked["message_group"] = message.message_group
        if is_transactional:
            asked["half"] = True
            send_half(producer, message, record, asked)
        else:
            record.event("invoke", asked)
            try:
                receipt = producer.send(message)
                record.event("ok", {**asked, "id": receipt.message_id, "offset": receipt.offset})
            except Exception as error:
                record.unknown(asked, error)
        number += 1
        stop.wait(args.pause_us / 1e6)
    producer.shutdown()


def send_half(producer, message, record, asked):
    number = asked["number"]
    record.event("invoke", asked)
    try:
        transaction = producer.begin_transaction()
        receipt = producer.send(message, transaction)
    except Exception as error:
        record.unknown(asked, error)
        return
    record.event("ok", {**asked, "id": receipt.message_id})
    if is_left_open(number):
        return
    asked = {"f": "end", "number": number, "commit": commits(number)}
    record.event("invoke", asked)
    try:
        transaction.commit() if commits(number) else transaction.rollback()
        record.event("ok", asked)
    except Exception as error:
        record.unknown(asked, error)


def delivery(message):
    return {
        "number": number_in(message),
        "id": message.message_id,
        "queue": ["", 0],
        "offset": 0,
        "attempt": message.delivery_attempt or 1,
    }


def consume(args, history, stop):
    configuration = ClientConfiguration(args.points, Credentials())
    consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()}, await_duration=2)
    consumer.startup()
    record = Record(history)
    while not stop.is_set():
        asked = {"f": "receive", "group": args.group, "lease_ns": args.lease_s * 10**9, "messages": []}
        record.event("invoke", asked)
        try:
            messages = consumer.receive(RECEIVE_BATCH, args.lease_s)
        except Exception as error:
            record.unknown(asked, error)
            continue
        record.event("ok", {**asked, "messages": [delivery(message) for message in messages]})
        for message in messages:
            ack = {"f": "ack", "group": args.group, "numbers": [number_in(message)]}
            record.event("invoke", ack)
            try:
                consumer.ack(message)
                record.event("ok", ack)
            except Exception as error:
                record.unknown(ack, error)
                if args.workload == "fifo":
                    # What follows in its message group must not be acknowledged before it.
                    break
    consumer.shutdown()


def main():
    args = arguments()
    stop = threading.Event()
    work = {"producer": produce, "consumer": consume}[args.role]
    worker = threading.Thread(target=work, args=(args, History(args), stop))
    worker.start()
    sys.stdin.read()
    stop.set()
    worker.join()


main()
