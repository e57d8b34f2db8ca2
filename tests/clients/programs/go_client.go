// Asks with Go's net/http. All goroutines share one client. With STYLE=streamed, no body can be sent a second time.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	mrand "math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

type told struct {
	Tried   int            `json:"tried"`
	Lost    int            `json:"lost"`
	Errors  map[string]int `json:"errors"`
	Longest float64        `json:"longest_ms"`
}

func transport(version, socket string) *http.Transport {
	ca, _ := os.ReadFile(os.Getenv("CA_FILE"))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version != "2")
	protocols.SetHTTP2(version == "2")
	protocols.SetUnencryptedHTTP2(version == "2")
	made := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: protocols, MaxIdleConnsPerHost: 64}
	if socket != "" {
		made.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return made
}

func once(client *http.Client, method, url string, body []byte) error {
	var sent io.Reader
	if body != nil {
		sent = bytes.NewReader(body)
	}
	request, err := http.NewRequest(method, url, sent)
	if err != nil {
		return err
	}
	if os.Getenv("STYLE") == "streamed" {
		request.GetBody = nil
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode != 200:
		return fmt.Errorf("status %d", answer.StatusCode)
	case body != nil && !bytes.Equal(said, body):
		return fmt.Errorf("%d other bytes than were sent", len(said))
	}
	return nil
}

func main() {
	words := append(os.Args[1:], "")
	url, method, version, socket := words[0], words[1], words[3], words[7]
	size, _ := strconv.Atoi(words[2])
	threads, _ := strconv.Atoi(words[4])
	seconds, _ := strconv.ParseFloat(words[5], 64)
	pause, _ := strconv.ParseFloat(words[6], 64)
	var body []byte
	if method != "GET" {
		body = make([]byte, size)
		rand.Read(body)
	}
	client := &http.Client{Transport: transport(version, socket), Timeout: 30 * time.Second}
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	sum, lock, all := told{Errors: map[string]int{}}, sync.Mutex{}, sync.WaitGroup{}
	for range threads {
		all.Add(1)
		go func() {
			defer all.Done()
			time.Sleep(time.Duration(mrand.Float64() * pause * float64(time.Second)))
			for time.Now().Before(end) {
				began := time.Now()
				err := once(client, method, url, body)
				lock.Lock()
				sum.Tried++
				sum.Longest = max(sum.Longest, float64(time.Since(began).Microseconds())/1000)
				if err != nil {
					sum.Lost++
					sum.Errors[err.Error()]++
				}
				lock.Unlock()
				switch {
				case pause > 0:
					time.Sleep(time.Duration(pause * float64(time.Second)))
				case err != nil:
					time.Sleep(50 * time.Millisecond)
				}
			}
		}()
	}
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(sum)
}
