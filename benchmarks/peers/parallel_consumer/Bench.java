import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.CommitMode;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Confluent's Parallel Consumer in key order: a function that counts, or waits and counts.
 *
 * <p>It decodes nothing and looks for no duplicates. What is measured begins after {@code skip}
 * messages, so that the compiler has seen the code. Usage: {@code Bench BOOTSTRAP TOPIC MESSAGES
 * SKIP CONCURRENCY WAIT_MILLISECONDS}; the last line it prints is its figures as JSON. It ends with
 * its standard input.
 */
public final class Bench {
  private Bench() {}

  public static void main(String[] arguments) throws Exception {
    String bootstrap = arguments[0];
    String topic = arguments[1];
    long messages = Long.parseLong(arguments[2]);
    long skip = Long.parseLong(arguments[3]);
    int concurrency = Integer.parseInt(arguments[4]);
    long waitMillis = Long.parseLong(arguments[5]);
    endWithStandardInput();

    KafkaConsumer<String, byte[]> consumer =
        new KafkaConsumer<>(
            Map.of(
                "bootstrap.servers", bootstrap,
                "group.id", "parallel-consumer-" + UUID.randomUUID(),
                "auto.offset.reset", "earliest",
                "enable.auto.commit", "false",
                "max.poll.records", "5000",
                "fetch.max.wait.ms", "100"),
            new StringDeserializer(),
            new ByteArrayDeserializer());
    ParallelStreamProcessor<String, byte[]> processor =
        ParallelStreamProcessor.createEosStreamProcessor(
            ParallelConsumerOptions.<String, byte[]>builder()
                .consumer(consumer)
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(concurrency)
                .commitMode(CommitMode.PERIODIC_CONSUMER_ASYNCHRONOUS)
                .commitInterval(Duration.ofSeconds(1))
                .build());
    AtomicLong seen = new AtomicLong();
    AtomicLong began = new AtomicLong();
    AtomicLong ended = new AtomicLong();
    AtomicLong violations = new AtomicLong();
    ConcurrentHashMap<String, Long> last = new ConcurrentHashMap<>();
    CountDownLatch over = new CountDownLatch(1);
    processor.subscribe(List.of(topic));
    processor.poll(
        context -> {
          Long before = last.put(context.key(), context.offset());
          if (before != null && before >= context.offset()) {
            violations.incrementAndGet();
          }
          if (waitMillis > 0) {
            try {
              Thread.sleep(waitMillis);
            } catch (InterruptedException interrupted) {
              Thread.currentThread().interrupt();
            }
          }
          long number = seen.incrementAndGet();
          if (number == skip) {
            began.set(System.nanoTime());
          } else if (number == messages) {
            ended.set(System.nanoTime());
            over.countDown();
          }
        });
    if (!over.await(900, TimeUnit.SECONDS)) {
      System.out.println("{\"error\": \"not over within 900 s: " + seen.get() + " messages\"}");
      Runtime.getRuntime().halt(0);
    }
    double seconds = (ended.get() - began.get()) / 1e9;
    System.out.printf(
        java.util.Locale.ROOT,
        "{\"rate\": %.1f, \"seconds\": %.3f, \"messages\": %d, \"violations\": %d}%n",
        (messages - skip) / seconds,
        seconds,
        messages - skip,
        violations.get());
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }

  private static void endWithStandardInput() {
    Thread watch =
        new Thread(
            () -> {
              try {
                while (System.in.read() >= 0) {
                  // Nothing is ever said.
                }
              } catch (java.io.IOException gone) {
                // The same as an end.
              }
              Runtime.getRuntime().halt(1);
            });
    watch.setDaemon(true);
    watch.start();
  }
}
