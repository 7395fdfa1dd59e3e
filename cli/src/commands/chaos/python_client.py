"""One client of a run by the unmodified Python SDK (rocketmq-python-client), until its input ends.

Prints its part of the history, one event a line, as `ledgermq chaos client` does. The SDK does not say
where a message lies, so its deliveries name no queue. A send that raised may have been stored.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import ClientConfiguration, Credentials, FilterExpression, Message, Producer, SimpleConsumer

RECEIVE_BATCH = 32
AFTER_ERROR_S = 0.05


class Record:
    def __init__(self, args):
        self.began_ns = args.began_ns
        self.process = args.first_process

    def event(self, kind, operation):
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self.began_ns
        print(json.dumps({"t": now_ns, "p": self.process, "k": kind, "op": operation}), flush=True)

    def unknown(self, operation, error):
        self.event("info", operation)
        self.process += 1
        print(f"{operation['f']}: {type(error).__name__}: {error}", file=sys.stderr)
        time.sleep(AFTER_ERROR_S)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["producer", "consumer"], required=True)
    for name in ["--points", "--topic", "--group"]:
        parser.add_argument(name, required=True)
    for name in ["--began-ns", "--first-process", "--first-number", "--pause-us", "--body-bytes", "--lease-s"]:
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


def produce(args, record, stop):
    producer = Producer(ClientConfiguration(args.points, Credentials()), (args.topic,))
    producer.startup()
    number = args.first_number
    while not stop.is_set():
        message = Message()
        message.topic = args.topic
        message.body = number.to_bytes(8, "big").ljust(args.body_bytes, b".")
        asked = {"f": "send", "number": number}
        record.event("invoke", asked)
        try:
            receipt = producer.send(message)
            record.event("ok", {**asked, "id": receipt.message_id, "offset": receipt.offset})
        except Exception as error:
            record.unknown(asked, error)
        number += 1
        stop.wait(args.pause_us / 1e6)
    producer.shutdown()


def delivery(message):
    return {
        "number": int.from_bytes(bytes(message.body)[:8], "big"),
        "id": message.message_id,
        "queue": ["", 0],
        "offset": 0,
        "attempt": message.delivery_attempt or 1,
    }


def consume(args, record, stop):
    configuration = ClientConfiguration(args.points, Credentials())
    consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()}, await_duration=2)
    consumer.startup()
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
            ack = {"f": "ack", "group": args.group, "numbers": [delivery(message)["number"]]}
            record.event("invoke", ack)
            try:
                consumer.ack(message)
                record.event("ok", ack)
            except Exception as error:
                record.unknown(ack, error)
    consumer.shutdown()


def main():
    args = arguments()
    stop = threading.Event()
    work = {"producer": produce, "consumer": consume}[args.role]
    worker = threading.Thread(target=work, args=(args, Record(args), stop))
    worker.start()
    sys.stdin.read()
    stop.set()
    worker.join()


main()
