"""A steady load from the unmodified Python SDK, written down event by event.

Producers send numbered messages until standard input closes or says `stop-sending`; consumers go
on until it closes. One JSON line per event:
  {"e":"invoke","t":…,"n":…}            a send begins
  {"e":"ack","t":…,"n":…,"id":…}        the SDK returned a receipt
  {"e":"fail","t":…,"n":…,"error":…}    the SDK raised
  {"e":"got","t":…,"n":…,"id":…,"attempt":…}  a message was received
  {"e":"acked","t":…,"id":…}            its ack returned
`t` is seconds of the system's monotonic clock, which the harness reads too.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer)

WRITE = threading.Lock()


def record(**event):
    event["t"] = time.clock_gettime(time.CLOCK_MONOTONIC)
    line = json.dumps(event)
    with WRITE:
        print(line, flush=True)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--producers", type=int, default=4)
    parser.add_argument("--pause-ms", type=float, default=5)
    parser.add_argument("--body-bytes", type=int, default=256)
    parser.add_argument("--consumer", choices=["simple", "push", "none"], default="push")
    return parser.parse_args()


def produce(args, index, stop):
    producer = Producer(ClientConfiguration(args.endpoints, Credentials()), (args.topic,))
    producer.startup()
    sequence = 0
    while not stop.is_set():
        number = f"{index}-{sequence}"
        sequence += 1
        message = Message()
        message.topic = args.topic
        message.body = number.encode() + b"." * args.body_bytes
        record(e="invoke", n=number)
        try:
            receipt = producer.send(message)
            record(e="ack", n=number, id=receipt.message_id)
        except Exception as error:
            record(e="fail", n=number, error=f"{type(error).__name__}: {error}")
        stop.wait(args.pause_ms / 1000)
    producer.shutdown()


def number_of(message):
    return bytes(message.body).split(b".", 1)[0].decode()


class Listener(MessageListener):
    def consume(self, message):
        record(e="got", n=number_of(message), id=message.message_id, attempt=message.delivery_attempt)
        return ConsumeResult.SUCCESS


def consume_simple(args, stop):
    consumer = SimpleConsumer(ClientConfiguration(args.endpoints, Credentials()), args.group,
                              {args.topic: FilterExpression()}, await_duration=5)
    consumer.startup()
    while not stop.is_set():
        try:
            for message in consumer.receive(32, 30):
                record(e="got", n=number_of(message), id=message.message_id,
                       attempt=message.delivery_attempt)
                # One ack that fails must not keep the rest of the batch from being recorded.
                try:
                    consumer.ack(message)
                    record(e="acked", id=message.message_id)
                except Exception as error:
                    record(e="ack-error", id=message.message_id, error=f"{type(error).__name__}: {error}")
        except Exception as error:
            record(e="receive-error", error=f"{type(error).__name__}: {error}")
            stop.wait(0.2)
    consumer.shutdown()


def main():
    args = arguments()
    stop_sending = threading.Event()
    stop = threading.Event()
    producers = [threading.Thread(target=produce, args=(args, index, stop_sending))
                 for index in range(args.producers)]
    consumer_thread = None
    push = None
    if args.consumer == "simple":
        consumer_thread = threading.Thread(target=consume_simple, args=(args, stop))
        consumer_thread.start()
    elif args.consumer == "push":
        push = PushConsumer(ClientConfiguration(args.endpoints, Credentials()), args.group, Listener(),
                            {args.topic: FilterExpression()})
        push.startup()
    for thread in producers:
        thread.start()
    record(e="ready")
    for line in sys.stdin:
        if line.strip() == "stop-sending":
            stop_sending.set()
            for thread in producers:
                thread.join()
            record(e="sending-stopped")
    stop_sending.set()
    stop.set()
    for thread in producers:
        thread.join()
    if consumer_thread is not None:
        consumer_thread.join()
    if push is not None:
        push.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
