//! Every bound of the product that more than one crate must agree on, with its unit in its name.
//! A bound used by one module only stands in that module.

/// Body of one message (RocketMQ's `maxMessageSize` less room for the envelope, because several
/// SDKs cannot receive a gRPC message above 4 MiB).
pub const MESSAGE_BODY_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;
/// User properties, tag and keys of one message together, as RocketMQ counts them.
pub const MESSAGE_PROPERTIES_BYTES_MAX: usize = 16 * 1024;
pub const MESSAGE_USER_PROPERTIES_MAX: usize = 128;
/// Length of a message id. The SDKs make 34 characters.
pub const MESSAGE_ID_BYTES_MAX: usize = 255;
/// RocketMQ's `maxMessageGroupSize` is exclusive: 64 is refused.
pub const MESSAGE_GROUP_BYTES_MAX: usize = 63;
/// Messages in one SendMessage request.
pub const SEND_BATCH_MESSAGES_MAX: usize = 1024;
/// Topics in one StoreBatch request.
pub const BATCH_TOPICS_MAX: usize = 64;
/// One command in the Raft log; a batch of the largest messages must be split by its sender.
pub const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;
/// One gRPC request on the client port.
pub const CLIENT_REQUEST_BYTES_MAX: usize = COMMAND_BYTES_MAX + 1024 * 1024;
pub const TOPIC_NAME_CHARS_MAX: usize = 127;
pub const CONSUMER_GROUP_NAME_CHARS_MAX: usize = 120;
pub const TOPIC_QUEUES_MAX: u32 = 65_536;
/// Messages of one ReceiveMessage answer (`grpcClientConsumerLongPollingBatchSize`).
pub const RECEIVE_BATCH_MESSAGES_MAX: u32 = 32;
pub const ACK_ENTRIES_MAX: usize = 1024;
pub const INVISIBLE_DURATION_MS_MAX: u64 = 12 * 60 * 60 * 1000;
/// An explicit lease shorter than this is refused on receive (`minInvisibleTimeMillsForRecv`).
pub const INVISIBLE_DURATION_RECEIVE_MS_MIN: u64 = 10_000;
pub const LONG_POLLING_MS_MAX: u64 = 20_000;
/// A held request is answered this long before its deadline, so that the answer still arrives.
pub const DEADLINE_MARGIN_MS: u64 = 300;
/// The deadline of a unary request that names none: what every SDK uses.
pub const UNARY_DEADLINE_MS_DEFAULT: u64 = 3_000;
/// The message-id window: whichever of the two ends first.
pub const MESSAGE_ID_WINDOW_MS: u64 = 10 * 60 * 1000;
pub const MESSAGE_ID_WINDOW_IDS_MAX: usize = 4_000_000;
/// A client that was not heard of for this long is gone (`channelExpiredTimeout`).
pub const CLIENT_EXPIRY_MS: u64 = 120_000;
/// Half messages of one broker group that wait for their outcome; about 150 bytes of memory each.
pub const UNDECIDED_TRANSACTIONS_MAX: usize = 1_000_000;
/// How long the outcome of a transaction is remembered, so that a repeated decision is answered and
/// an opposite one refused. After it the transaction id is unknown; the outcome itself stays.
pub const TRANSACTION_OUTCOME_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a recall is remembered beyond the time of its message: a repeat of a recall whose answer
/// was lost gets the first answer. As long as a repeated send does.
pub const RECALL_REMEMBERED_MS: u64 = MESSAGE_ID_WINDOW_MS;
pub const TRANSACTION_OUTCOMES_MAX: usize = 1_000_000;
/// Name of a lite topic (RocketMQ's `max_lite_topic_size`).
pub const LITE_TOPIC_BYTES_MAX: usize = 64;
/// Lite topics one client subscribes to, unless its consumer group says otherwise
/// (`lite.sub.client.quota`).
pub const LITE_SUBSCRIPTIONS_PER_CLIENT: u32 = 2_000;
/// The most a consumer group may allow a client.
pub const LITE_SUBSCRIPTIONS_PER_CLIENT_MAX: u32 = 10_000;
/// Subscriptions to lite topics of one broker group (RocketMQ's `maxLiteSubscriptionCount`).
pub const LITE_SUBSCRIPTIONS_MAX: usize = 100_000;
/// Lite topics of one broker group; some 400 bytes of memory each.
pub const LITE_TOPICS_MAX: usize = 2_000_000;
