"""Transactions of the unmodified Python SDK, one step at a time.

Reads steps from standard input: `half NAME`, `commit NAME`, `rollback NAME`. A body is
`NAME|VERDICT`, and the checker answers with the verdict in it, whoever sent the message.
One JSON line per event:
  {"e":"half","n":…,"id":…}          the half message is stored
  {"e":"ended","n":…}                the outcome was taken
  {"e":"fail","n":…,"error":…}       the SDK raised
  {"e":"check","n":…}                the checker was asked
  {"e":"got","n":…,"id":…,"attempt":…}  the consumer received it
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, TransactionChecker, TransactionResolution)

WRITE = threading.Lock()
VERDICTS = {"commit": TransactionResolution.COMMIT, "rollback": TransactionResolution.ROLLBACK,
            "unknown": TransactionResolution.TRANSACTION_RESOLUTION_UNSPECIFIED}


def record(**event):
    event["t"] = time.clock_gettime(time.CLOCK_MONOTONIC)
    with WRITE:
        print(json.dumps(event), flush=True)


def name_of(message):
    return bytes(message.body).decode()


class Checker(TransactionChecker):
    def check(self, message):
        name = name_of(message)
        record(e="check", n=name)
        return VERDICTS[name.split("|")[1]]


class Listener(MessageListener):
    def consume(self, message):
        record(e="got", n=name_of(message), id=message.message_id, attempt=message.delivery_attempt)
        return ConsumeResult.SUCCESS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", default="")
    args = parser.parse_args()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,), checker=Checker())
    producer.startup()
    consumer = None
    if args.group:
        consumer = PushConsumer(configuration, args.group, Listener(), {args.topic: FilterExpression()})
        consumer.startup()
    record(e="ready")
    open_transactions = {}
    for line in sys.stdin:
        step, name = line.split()
        try:
            if step == "half":
                message = Message()
                message.topic = args.topic
                message.body = name.encode()
                message.add_property("name", name)
                transaction = producer.begin_transaction()
                receipt = producer.send(message, transaction)
                open_transactions[name] = transaction
                record(e="half", n=name, id=receipt.message_id)
            elif step == "commit":
                open_transactions[name].commit()
                record(e="ended", n=name)
            elif step == "rollback":
                open_transactions[name].rollback()
                record(e="ended", n=name)
        except Exception as error:  # every failure of the SDK counts, whatever its type
            record(e="fail", n=name, error=f"{type(error).__name__}: {error}")
    if consumer is not None:
        consumer.shutdown()
    producer.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
